//! What the server holds: objects, their versions, and what was asked.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) uri: String,
    pub(crate) body: Value,
}

impl Asked {
    pub(crate) fn summary(&self) -> String {
        let body = self.body.to_string();
        let start = &body[..body.floor_char_boundary(300)];
        format!("{} {} {start}", self.method, self.uri)
    }
}

/// Where an object or a collection is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) resource: String,
    /// Empty: all, or none.
    pub(crate) namespace: String,
    /// Empty: a collection.
    pub(crate) name: String,
}

impl Place {
    pub(crate) fn new(resource: &str, namespace: &str, name: &str) -> Self {
        let [resource, namespace, name] = [resource, namespace, name].map(str::to_owned);
        Self { resource, namespace, name }
    }

    /// The place of a path, and its subresource.
    pub(crate) fn parse(path: &str) -> (Self, Option<String>) {
        let mut parts = path.trim_start_matches('/').split('/');
        if parts.next() == Some("apis") {
            parts.next();
        }
        parts.next();
        let mut rest: Vec<_> = parts.collect();
        let namespace = if rest.first() == Some(&"namespaces") && rest.len() > 2 {
            rest.drain(..2).nth(1).unwrap()
        } else {
            ""
        };
        let part = |at: usize| rest.get(at).copied().unwrap_or_default();
        (Self::new(part(0), namespace, part(1)), rest.get(2).map(|part| (*part).to_owned()))
    }

    fn holds(&self, other: &Self) -> bool {
        self.resource == other.resource
            && (self.namespace.is_empty() || self.namespace == other.namespace)
    }
}

#[derive(Debug)]
struct Happened {
    version: u64,
    place: Place,
    kind: String,
    object: Value,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<Place, Value>,
    history: Vec<Happened>,
    version: u64,
    oldest: u64,
    uids: u64,
    pub(crate) asked: Vec<Asked>,
}

impl Store {
    pub(crate) fn put(&mut self, resource: &str, mut object: Value) -> Value {
        self.version += 1;
        let metadata = object["metadata"].as_object_mut().expect("an object has metadata");
        let text = |field: &str| {
            metadata.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let place = Place::new(resource, &text("namespace"), &text("name"));
        let before = self.objects.get(&place);
        if text("uid").is_empty() {
            self.uids += 1;
            let uid = before.map_or(json!(format!("uid-{}", self.uids)), |before| {
                before["metadata"]["uid"].clone()
            });
            metadata.insert("uid".to_owned(), uid);
        }
        metadata.insert("resourceVersion".to_owned(), json!(self.version.to_string()));
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.objects.insert(place.clone(), object.clone());
        self.note(place, kind, object.clone());
        object
    }

    pub(crate) fn remove(&mut self, place: &Place) -> Option<Value> {
        let mut object = self.objects.remove(place)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.note(place.clone(), "DELETED", object.clone());
        Some(object)
    }

    fn note(&mut self, place: Place, kind: &str, object: Value) {
        let kind = kind.to_owned();
        self.history.push(Happened { version: self.version, place, kind, object });
    }

    pub(crate) fn get(&self, place: &Place) -> Option<&Value> {
        self.objects.get(place)
    }

    pub(crate) fn all(&self, resource: &str) -> Vec<Value> {
        let ours = self.objects.iter().filter(|(place, _)| place.resource == resource);
        ours.map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn compact(&mut self) {
        self.oldest = self.version + 1;
        self.version += 1;
    }

    /// A line for watches only.
    pub(crate) fn say(&mut self, resource: &str, line: &Value) {
        let kind = line["type"].as_str().unwrap().to_owned();
        let place = Place::new(resource, "", "");
        let object = line["object"].clone();
        self.history.push(Happened { version: u64::MAX, place, kind, object });
    }

    /// Where a watch begins in the history.
    pub(crate) fn first_line(&self, query: &str) -> Result<usize, u16> {
        let since: u64 = parameter(query, "resourceVersion").unwrap_or_default().parse().unwrap();
        if since < self.oldest {
            return Err(410);
        }
        let seen = |happened: &Happened| happened.version <= since;
        Ok(self.history.iter().rposition(seen).map_or(0, |last| last + 1))
    }

    /// The first line at or after `at` that this watch is to have.
    pub(crate) fn line_after(
        &self,
        at: usize,
        place: &Place,
        query: &str,
    ) -> Option<(usize, String)> {
        let selector = parameter(query, "fieldSelector").unwrap_or_default();
        let found = self.history.iter().enumerate().skip(at).find(|(_, happened)| {
            let said = happened.version == u64::MAX;
            place.holds(&happened.place) && (said || selects(&selector, &happened.object))
        });
        let (at, happened) = found?;
        let line = json!({ "type": happened.kind, "object": happened.object });
        Some((at + 1, format!("{line}\n")))
    }

    /// Everything but watches.
    pub(crate) fn perform(
        &mut self,
        place: &Place,
        query: &str,
        asked: &Asked,
    ) -> Result<Value, u16> {
        match (asked.method.as_str(), place.name.is_empty()) {
            ("GET", true) => Ok(self.list(place, query)),
            ("GET", false) => self.objects.get(place).cloned().ok_or(404),
            ("POST", _) => self.create(place, &asked.body),
            ("PUT", _) => {
                let held = self.objects.get(place).ok_or(404_u16)?;
                let version = &asked.body["metadata"]["resourceVersion"];
                if version != &held["metadata"]["resourceVersion"] {
                    return Err(409);
                }
                Ok(self.put(&place.resource, asked.body.clone()))
            }
            ("PATCH", _) => {
                let mut object = self.objects.get(place).cloned().ok_or(404_u16)?;
                let uid = &asked.body["metadata"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return Err(422);
                }
                merge(&mut object, &asked.body);
                Ok(self.put(&place.resource, object))
            }
            ("DELETE", _) => {
                let held = self.objects.get(place).ok_or(404_u16)?;
                let uid = &asked.body["preconditions"]["uid"];
                if !uid.is_null() && *uid != held["metadata"]["uid"] {
                    return Err(409);
                }
                self.remove(place).ok_or(404)
            }
            _ => Err(405),
        }
    }

    fn list(&self, place: &Place, query: &str) -> Value {
        let selector = parameter(query, "fieldSelector").unwrap_or_default();
        let limit = parameter(query, "limit").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
        let from = parameter(query, "continue").and_then(|n| n.parse().ok()).unwrap_or(0);
        let all: Vec<_> = self
            .objects
            .iter()
            .filter(|(at, object)| place.holds(at) && selects(&selector, object))
            .map(|(_, object)| object)
            .collect();
        let more = (from + limit < all.len()).then(|| (from + limit).to_string());
        let items: Vec<_> = all.into_iter().skip(from).take(limit).collect();
        json!({
            "apiVersion": "v1", "kind": "List", "items": items,
            "metadata": { "resourceVersion": self.version.to_string(), "continue": more },
        })
    }

    fn create(&mut self, place: &Place, object: &Value) -> Result<Value, u16> {
        let mut object = object.clone();
        if !place.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(place.namespace);
        }
        let name = object["metadata"]["name"].as_str().ok_or(422_u16)?;
        if self.objects.contains_key(&Place::new(&place.resource, &place.namespace, name)) {
            return Err(409);
        }
        Ok(self.put(&place.resource, object))
    }
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.find_map(|(key, value)| (key == name).then_some(value))?;
    Some(value.replace("%3D", "=").replace("%2C", ","))
}

fn selects(selector: &str, object: &Value) -> bool {
    selector.split(',').filter_map(|term| term.split_once('=')).all(|(field, wanted)| {
        let found = field.split('.').fold(object, |value, part| &value[part]);
        found.as_str() == Some(wanted)
    })
}

/// A strategic merge, as far as a node needs one.
fn merge(base: &mut Value, patch: &Value) {
    if !base.is_object() {
        *base = Value::Object(Map::new());
    }
    let base = base.as_object_mut().unwrap();
    for (field, new) in patch.as_object().into_iter().flatten() {
        let key = match field.as_str() {
            "conditions" | "addresses" => Some("type"),
            "podIPs" | "hostIPs" => Some("ip"),
            _ => None,
        };
        match (new, key) {
            (Value::Null, _) => {
                base.remove(field);
            }
            (Value::Array(items), Some(key)) => {
                let list = base.entry(field).or_insert(json!([])).as_array_mut().unwrap();
                for item in items {
                    match item["$patch"].as_str() {
                        Some("replace") => list.clear(),
                        Some(_) => list.retain(|old| old[key] != item[key]),
                        None => match list.iter_mut().find(|old| old[key] == item[key]) {
                            Some(old) => merge(old, item),
                            None => list.push(item.clone()),
                        },
                    }
                }
            }
            (Value::Object(_), _) => merge(base.entry(field).or_insert(json!({})), new),
            (new, _) => {
                base.insert(field.clone(), new.clone());
            }
        }
    }
}
