//! The certificate authority of a cluster, out of a kubeconfig: whoever shows
//! a certificate signed by it is a user of the cluster, the API server first.

use std::{fs, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kube::config::Kubeconfig;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::ConnectError;

/// The CA that the kubeconfig's current cluster names, as PEM. None if it names
/// none, so that the system's are used.
///
/// # Errors
///
/// [`ConnectError::Kubeconfig`] if the file cannot be read,
/// [`ConnectError::Authority`] if what it names is no certificate.
pub fn authority(kubeconfig: &Path) -> Result<Option<Vec<u8>>, ConnectError> {
    let file = Kubeconfig::read_from(kubeconfig).map_err(|source| ConnectError::Kubeconfig {
        path: kubeconfig.to_owned(),
        source: Box::new(source),
    })?;
    let bad = |why: String| ConnectError::Authority { path: kubeconfig.to_owned(), why };
    let context = file.current_context.as_deref();
    let Some(cluster) = file
        .contexts
        .iter()
        .find(|named| Some(named.name.as_str()) == context)
        .and_then(|named| named.context.as_ref())
        .and_then(|context| file.clusters.iter().find(|named| named.name == context.cluster))
        .and_then(|named| named.cluster.as_ref())
    else {
        return Ok(None);
    };
    let pem = if let Some(data) = &cluster.certificate_authority_data {
        BASE64_STANDARD.decode(data).map_err(|error| bad(error.to_string()))?
    } else if let Some(path) = &cluster.certificate_authority {
        fs::read(path).map_err(|error| bad(format!("{path}: {error}")))?
    } else {
        return Ok(None);
    };
    CertificateDer::from_pem_slice(&pem).map_err(|error| bad(error.to_string()))?;
    Ok(Some(pem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cluster: &str) -> Result<Option<Vec<u8>>, ConnectError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             users: [{{name: u, user: {{}}}}]\nclusters: [{{name: k, cluster: {cluster}}}]\n"
        );
        fs::write(&path, text).unwrap();
        authority(&path)
    }

    #[test]
    fn a_cluster_without_an_authority_has_none() {
        assert_eq!(read("{server: \"https://x\"}").unwrap(), None);
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_the_files_name() {
        for data in ["AAAA", "%%%"] {
            let error = read(&format!("{{certificate-authority-data: \"{data}\"}}")).unwrap_err();
            assert!(error.to_string().contains("kubeconfig"), "{error}");
        }
    }
}
