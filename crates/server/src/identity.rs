//! Who asks: the subject of a client certificate or the holder of a token.

use std::collections::BTreeMap;

use rustls_pki_types::CertificateDer;

/// A user as the API server knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    /// The certificate's common name, or the token's user name.
    pub name: String,
    /// The certificate's organizations, or the token's groups.
    pub groups: Vec<String>,
    /// The token's uid, if it has one.
    pub uid: Option<String>,
    /// What else the token's authenticator said.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Reads the user from a certificate that TLS has already verified.
///
/// None if it has no common name, which makes it nobody's. Source: apiserver,
/// `CommonNameUserConversion` in `authentication/request/x509/x509.go`.
#[must_use]
pub fn user_of(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    if name.is_empty() {
        return None;
    }
    let groups = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned)
        .chain(["system:authenticated".to_owned()])
        .collect();
    Some(User { name: name.to_owned(), groups, uid: None, extra: BTreeMap::new() })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(entries: &[(DnType, &str)]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in entries {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_common_name_is_the_user_and_organizations_are_groups() {
        let der = certificate(&[
            (DnType::OrganizationName, "system:masters"),
            (DnType::CommonName, "admin"),
        ]);
        let user = user_of(&der).unwrap();
        assert_eq!(user.name, "admin");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
    }

    #[test]
    fn a_certificate_without_a_name_is_nobody() {
        assert_eq!(user_of(&certificate(&[(DnType::OrganizationName, "system:masters")])), None);
        assert_eq!(user_of(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
