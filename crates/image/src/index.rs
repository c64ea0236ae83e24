//! The images of the store, in memory: which reference means what.
//!
//! Pure but for the look at whether content is still on disk, which its user takes.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::access::Access;
use crate::digest::Digest;
use crate::reference::Reference;
use crate::store::holds::ContentKey;
use crate::store::record::Record;

/// An image as listed: one line for all references to the same image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSummary {
    /// Its canonical references, then `repository@digest` for each repository.
    pub names: Vec<String>,
    /// Its digest, `sha256:…`.
    pub digest: String,
    /// Size in bytes as transferred.
    pub bytes: u64,
    /// When it was last pulled or imported.
    pub pulled_at: Timestamp,
    /// Whether somebody holds it.
    pub in_use: bool,
}

/// All records, by canonical reference.
#[derive(Debug, Default)]
pub(crate) struct Index {
    records: BTreeMap<String, Record>,
}

impl Index {
    pub(crate) fn new(records: Vec<Record>) -> Self {
        Self {
            records: records.into_iter().map(|record| (record.reference.clone(), record)).collect(),
        }
    }

    /// What a reference means. A digest is also known if any tag of its repository means it.
    pub(crate) fn find(&self, reference: &Reference) -> Option<&Record> {
        if let Some(record) = self.records.get(&reference.to_string()) {
            return Some(record);
        }
        let digest = reference.digest()?;
        let name = reference.name();
        self.records.values().find(|record| record.name == name && record.digest == *digest)
    }

    pub(crate) fn insert(&mut self, record: Record) {
        self.records.insert(record.reference.clone(), record);
    }

    /// All that is known of who may have the image of a record, under whatever tag of its repository.
    pub(crate) fn access(&self, record: &Record) -> Access {
        let same = |other: &&Record| other.digest == record.digest && other.name == record.name;
        Access::union(self.records.values().filter(same).map(|record| &record.access))
    }

    /// Takes a reference out. Also says whether no other one has the same content.
    pub(crate) fn remove(&mut self, reference: &str) -> Option<(Record, bool)> {
        let record = self.records.remove(reference)?;
        let key = record.content.key();
        let is_last = !self.records.values().any(|other| other.content.key() == key);
        Some((record, is_last))
    }

    /// The references that were left behind by their tags and that nobody holds.
    pub(crate) fn forgotten(&self, is_held: impl Fn(&ContentKey) -> bool) -> Vec<String> {
        let forgotten = |record: &&Record| record.dangling && !is_held(&record.content.key());
        self.records.values().filter(forgotten).map(|record| record.reference.clone()).collect()
    }

    pub(crate) fn list(&self, is_held: impl Fn(&ContentKey) -> bool) -> Vec<ImageSummary> {
        let mut images: BTreeMap<&Digest, (ImageSummary, Vec<String>)> = BTreeMap::new();
        for record in self.records.values() {
            let (image, ids) = images.entry(&record.digest).or_insert_with(|| {
                let image = ImageSummary {
                    names: Vec::new(),
                    digest: record.digest.to_string(),
                    bytes: record.bytes,
                    pulled_at: record.pulled_at,
                    in_use: is_held(&record.content.key()),
                };
                (image, Vec::new())
            });
            image.pulled_at = image.pulled_at.max(record.pulled_at);
            let id = record.id();
            if record.reference != id {
                image.names.push(record.reference.clone());
            }
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let finish = |(mut image, ids): (ImageSummary, Vec<String>)| {
            image.names.extend(ids);
            image
        };
        images.into_values().map(finish).collect()
    }
}
