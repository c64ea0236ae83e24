//! The part of `kubelet.config.k8s.io/v1beta1` `KubeletConfiguration` that the
//! agent honours. A field that is not here is an error that names it: silently
//! ignoring a limit or a security setting would be worse.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use clap::ValueEnum;
use k8s_openapi::api::core::v1::Taint;
use krustlet_cluster::node::EvictionThresholds;
use krustlet_image::{PolicyError, VerificationPolicy};
use krustlet_model::{Chain, bandwidth::MOST_SOCKETS};
use serde::Deserialize;

use super::{duration::GoDuration, eviction};
use crate::cli::{PodNetworkMode, ServiceProxy};

/// The file given with `--config`. Defaults are the kubelet's
/// (`pkg/kubelet/apis/config/v1beta1/defaults.go`) where not said otherwise.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) struct KubeletConfiguration {
    /// `kubelet.config.k8s.io/v1beta1`.
    pub(crate) api_version: String,
    /// `KubeletConfiguration`.
    pub(crate) kind: String,
    /// Where the HTTPS API listens; all addresses by default.
    pub(crate) address: Option<IpAddr>,
    /// The HTTPS API's port, 10250 by default.
    pub(crate) port: Option<u16>,
    /// Serving certificate, with `tlsPrivateKeyFile`; self-signed without.
    pub(crate) tls_cert_file: Option<PathBuf>,
    /// Key of `tlsCertFile`.
    pub(crate) tls_private_key_file: Option<PathBuf>,
    /// Who may ask the HTTPS API.
    #[serde(default)]
    pub(crate) authentication: Authentication,
    /// What they may ask.
    #[serde(default)]
    pub(crate) authorization: Authorization,
    /// Whether the agent creates its Node; true by default.
    pub(crate) register_node: Option<bool>,
    /// Taints of a newly created Node.
    pub(crate) register_with_taints: Option<Vec<Taint>>,
    /// `spec.providerID` of a newly created Node.
    #[serde(rename = "providerID")]
    pub(crate) provider_id: Option<String>,
    /// The pods' range of addresses, one of each family if separated by a
    /// comma, for a Node that the control plane gives none.
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<String>,
    /// The most pods, 110 by default.
    pub(crate) max_pods: Option<u32>,
    /// How often the status is computed, 10 s by default.
    pub(crate) node_status_update_frequency: Option<GoDuration>,
    /// How often it is posted when nothing changed, 5 min by default.
    pub(crate) node_status_report_frequency: Option<GoDuration>,
    /// Resources kept for the system.
    #[serde(default)]
    pub(crate) system_reserved: BTreeMap<String, String>,
    /// Resources kept for Kubernetes' own processes.
    #[serde(default)]
    pub(crate) kube_reserved: BTreeMap<String, String>,
    /// What must stay free, by signal; the kubelet's defaults if it is not set.
    pub(crate) eviction_hard: Option<BTreeMap<String, String>>,
    /// Whether signals that `evictionHard` lacks have their defaults; false by
    /// default.
    pub(crate) merge_default_eviction_settings: Option<bool>,
    /// Size of one log file, `10Mi` by default.
    pub(crate) container_log_max_size: Option<String>,
    /// Log files of one container, 5 by default.
    pub(crate) container_log_max_files: Option<u32>,
    /// Where logs are kept, `/var/log/pods` by default.
    pub(crate) pod_logs_dir: Option<PathBuf>,
    /// The cluster's name servers.
    #[serde(rename = "clusterDNS", default)]
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// The cluster's domain; none by default.
    pub(crate) cluster_domain: Option<String>,
    /// The node's resolv.conf; empty text is none. By default the system's.
    pub(crate) resolv_conf: Option<String>,
    /// Events sent per second in the long run, 50 by default; 0 is no bound.
    #[serde(rename = "eventRecordQPS")]
    pub(crate) event_record_qps: Option<u32>,
    /// Events sent at once, 100 by default.
    pub(crate) event_burst: Option<u32>,
    /// Images pulled at once; at least 1.
    pub(crate) max_parallel_image_pulls: Option<u32>,
    /// Which images that are here pods get without their credentials being
    /// verified, `NeverVerifyPreloadedImages` by default.
    pub(crate) image_pull_credentials_verification_policy: Option<String>,
    /// Those images, for `NeverVerifyAllowlistedImages`.
    #[serde(default)]
    pub(crate) preloaded_images_verification_allowlist: Vec<String>,
    /// No kubelet's, as those that follow: `auto`, `own` or `host`, as the flag.
    pub(crate) pod_network: Option<String>,
    /// Whether the podCIDRs of other nodes are led to; false by default.
    pub(crate) node_routes: Option<bool>,
    /// The most sockets of a pod, 4096 by default.
    pub(crate) max_pod_sockets: Option<u32>,
    /// `none` or `builtin`, as the flag.
    pub(crate) service_proxy: Option<String>,
    /// Whether the cluster's NetworkPolicies are enforced; false by default.
    pub(crate) network_policy: Option<bool>,
}

/// `authentication`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) struct Authentication {
    /// Client certificates.
    pub(crate) x509: X509,
    /// Bearer tokens, reviewed by the API server; on by default.
    pub(crate) webhook: Webhook,
    /// Must stay off.
    pub(crate) anonymous: Anonymous,
}

/// `authentication.x509`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) struct X509 {
    /// Certificates signed by one of these are users. Without it none is, and
    /// the API server itself is not let in.
    #[serde(rename = "clientCAFile")]
    pub(crate) client_ca_file: Option<PathBuf>,
}

/// `authentication.webhook` and its like.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) struct Webhook {
    /// Only true is supported.
    pub(crate) enabled: Option<bool>,
}

/// `authentication.anonymous`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) struct Anonymous {
    /// Only false is supported.
    pub(crate) enabled: Option<bool>,
}

/// `authorization`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) struct Authorization {
    /// Only `Webhook` is supported.
    pub(crate) mode: Option<String>,
}

impl KubeletConfiguration {
    /// An empty file with the right version.
    pub(crate) const EMPTY: &str =
        "{apiVersion: kubelet.config.k8s.io/v1beta1, kind: KubeletConfiguration}";

    /// What no type can say.
    ///
    /// # Errors
    ///
    /// A sentence that names the field, the value and what would do.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.api_version != "kubelet.config.k8s.io/v1beta1"
            || self.kind != "KubeletConfiguration"
        {
            return Err(format!(
                "it is a {} {}; a kubelet.config.k8s.io/v1beta1 KubeletConfiguration is wanted",
                self.api_version, self.kind
            ));
        }
        let refuse = |field: &str, why: &str| Err(format!("{field}: {why}"));
        if self.authentication.anonymous.enabled == Some(true) {
            return refuse(
                "authentication.anonymous.enabled",
                "anonymous access is never granted; remove it",
            );
        }
        if self.authentication.webhook.enabled == Some(false) {
            return refuse("authentication.webhook.enabled", "cannot be turned off; remove it");
        }
        if self.authorization.mode.as_deref().is_some_and(|mode| mode != "Webhook") {
            return refuse("authorization.mode", "only Webhook is supported");
        }
        if self.tls_cert_file.is_some() != self.tls_private_key_file.is_some() {
            return refuse("tlsCertFile", "must be set together with tlsPrivateKeyFile");
        }
        if self.max_pods == Some(0) {
            return refuse("maxPods", "must be at least 1");
        }
        if self.container_log_max_files.is_some_and(|files| files < 2) {
            return refuse("containerLogMaxFiles", "must be at least 2");
        }
        if self.max_parallel_image_pulls == Some(0) {
            return refuse("maxParallelImagePulls", "must be at least 1");
        }
        if self.max_pod_sockets.is_some_and(|most| !(1..=MOST_SOCKETS).contains(&most)) {
            return refuse("maxPodSockets", &format!("must be from 1 to {MOST_SOCKETS}"));
        }
        self.pod_network()?;
        self.service_proxy()?;
        self.verification().map_err(|error| Chain(&error).to_string())?;
        self.eviction()?;
        Ok(())
    }

    /// How pods get their addresses.
    ///
    /// # Errors
    ///
    /// A sentence that names the field, the value and what would do.
    pub(crate) fn pod_network(&self) -> Result<Option<PodNetworkMode>, String> {
        choice("podNetwork", self.pod_network.as_deref())
    }

    /// Who leads pods to Services.
    ///
    /// # Errors
    ///
    /// As [`pod_network`](Self::pod_network).
    pub(crate) fn service_proxy(&self) -> Result<Option<ServiceProxy>, String> {
        choice("serviceProxy", self.service_proxy.as_deref())
    }

    /// What must stay free.
    ///
    /// # Errors
    ///
    /// A sentence that names the signal, the value and what would do.
    pub(crate) fn eviction(&self) -> Result<EvictionThresholds, String> {
        let merges = self.merge_default_eviction_settings == Some(true);
        eviction::thresholds(self.eviction_hard.as_ref(), merges)
            .map_err(|why| format!("evictionHard: {why}"))
    }

    /// The two fields about the verification of pull credentials.
    ///
    /// # Errors
    ///
    /// [`PolicyError`], which names the field.
    pub(crate) fn verification(&self) -> Result<VerificationPolicy, PolicyError> {
        VerificationPolicy::new(
            self.image_pull_credentials_verification_policy.as_deref(),
            &self.preloaded_images_verification_allowlist,
        )
    }
}

/// One of a flag's values, as a field.
fn choice<T: ValueEnum>(field: &str, given: Option<&str>) -> Result<Option<T>, String> {
    let Some(given) = given else { return Ok(None) };
    T::from_str(given, false).map(Some).map_err(|_| {
        let all = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let all: Vec<String> = all.map(|value| value.get_name().to_owned()).collect();
        format!("{field}: {given:?} is none of: {}", all.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<KubeletConfiguration, String> {
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{more}"
        );
        let read: KubeletConfiguration =
            serde_saphyr::from_str(&text).map_err(|error| error.to_string())?;
        read.validate()?;
        Ok(read)
    }

    #[test]
    fn the_empty_file_is_valid() {
        let empty: KubeletConfiguration =
            serde_saphyr::from_str(KubeletConfiguration::EMPTY).unwrap();
        assert_eq!(empty.validate(), Ok(()));
    }

    #[test]
    fn kubelets_spelling_is_read() {
        let read = read(
            "port: 11250\nauthentication: {x509: {clientCAFile: /ca.crt}, anonymous: {enabled: false}}\n\
             nodeStatusUpdateFrequency: 10s\nsystemReserved: {cpu: 100m}\nproviderID: x://y\n",
        )
        .unwrap();
        assert_eq!(read.port, Some(11250));
        assert_eq!(read.authentication.x509.client_ca_file, Some("/ca.crt".into()));
    }

    #[test]
    fn the_verification_of_pull_credentials_is_read() {
        assert_eq!(read("").unwrap().verification(), Ok(VerificationPolicy::default()));
        let never = read("imagePullCredentialsVerificationPolicy: NeverVerify").unwrap();
        assert_eq!(never.verification(), Ok(VerificationPolicy::NeverVerify));
        let listed = read(
            "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n\
             preloadedImagesVerificationAllowlist: [h.io/base/*, h.io/tool]\n",
        );
        assert!(matches!(
            listed.unwrap().verification(),
            Ok(VerificationPolicy::NeverVerifyAllowlistedImages(_))
        ));
    }

    #[test]
    fn an_unknown_or_unsafe_field_is_named() {
        for (text, field) in [
            ("cpuManagerPolicy: static", "cpuManagerPolicy"),
            ("authentication: {anonymous: {enabled: true}}", "anonymous"),
            ("authorization: {mode: AlwaysAllow}", "authorization.mode"),
            ("tlsCertFile: /x", "tlsPrivateKeyFile"),
            ("evictionHard: {nodefs.available: some}", "evictionHard: nodefs.available"),
            ("serviceProxy: iptables", "serviceProxy: \"iptables\" is none of: none, builtin"),
            ("podNetwork: Own", "podNetwork: \"Own\" is none of: auto, own, host"),
            ("maxPodSockets: 0", "maxPodSockets: must be from 1 to 16384"),
            ("maxPodSockets: 16385", "maxPodSockets"),
            ("networkPolicies: true", "networkPolicies"),
            ("nodeStatusUpdateFrequency: soon", "soon"),
            (
                "imagePullCredentialsVerificationPolicy: Sometimes",
                "imagePullCredentialsVerificationPolicy",
            ),
            (
                "preloadedImagesVerificationAllowlist: [h.io/a]",
                "imagePullCredentialsVerificationPolicy",
            ),
            (
                "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n\
                 preloadedImagesVerificationAllowlist: [\"h.io/a:1\"]",
                "h.io/a:1",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(field), "{error}");
        }
    }
}
