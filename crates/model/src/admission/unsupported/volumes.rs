//! Kinds of volumes.

use k8s_openapi::api::core::v1::{PodSpec, Volume};

use super::{Found, NOT_YET, has_any};

/// The kinds that `krustlet-volume` makes.
fn is_offered(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.downward_api.is_some()
        || volume.empty_dir.is_some()
        || volume.projected.is_some()
        || volume.secret.is_some()
}

pub(super) fn of_pod(spec: &PodSpec, found: &mut Found) {
    for volume in spec.volumes.iter().flatten() {
        found.at(format!("spec.volumes[{}]", volume.name));
        if is_offered(volume) {
            details(volume, found);
            continue;
        }
        let (kind, why) = kind(volume);
        found.refuse(true, kind, why);
    }
}

/// What of the offered kinds is not.
fn details(volume: &Volume, found: &mut Found) {
    if let Some(source) = &volume.empty_dir {
        let medium = source.medium.as_deref().unwrap_or_default();
        found.refuse(
            !matches!(medium, "" | "Memory"),
            "emptyDir.medium",
            "a WebAssembly program cannot use huge pages",
        );
        found.refuse(source.mode.is_some(), "emptyDir.mode", NOT_YET);
    }
    let users = "all files belong to the pod's user";
    if let Some(source) = &volume.config_map {
        let own = source.items.iter().flatten().any(|item| item.user.is_some());
        found.refuse(own || source.default_user.is_some(), "configMap.defaultUser", users);
    }
    if let Some(source) = &volume.secret {
        let own = source.items.iter().flatten().any(|item| item.user.is_some());
        found.refuse(own || source.default_user.is_some(), "secret.defaultUser", users);
    }
    if let Some(source) = &volume.downward_api {
        let own = source.items.iter().flatten().any(|item| item.user.is_some());
        found.refuse(own || source.default_user.is_some(), "downwardAPI.defaultUser", users);
    }
    if let Some(source) = &volume.projected {
        found.refuse(source.default_user.is_some(), "projected.defaultUser", users);
        let sources = source.sources.as_ref();
        found.refuse(has_bundle(sources), "projected.sources.clusterTrustBundle", NOT_YET);
        found.refuse(has_certificate(sources), "projected.sources.podCertificate", NOT_YET);
        found.refuse(has_any(sources) && has_users(sources), "projected.sources.user", users);
    }
}

type Projections = Vec<k8s_openapi::api::core::v1::VolumeProjection>;

fn has_bundle(sources: Option<&Projections>) -> bool {
    sources.into_iter().flatten().any(|source| source.cluster_trust_bundle.is_some())
}

fn has_certificate(sources: Option<&Projections>) -> bool {
    sources.into_iter().flatten().any(|source| source.pod_certificate.is_some())
}

fn has_users(sources: Option<&Projections>) -> bool {
    sources.into_iter().flatten().any(|source| {
        let map = source.config_map.iter().flat_map(|map| map.items.iter().flatten());
        let secret = source.secret.iter().flat_map(|secret| secret.items.iter().flatten());
        let downward = source.downward_api.iter().flat_map(|api| api.items.iter().flatten());
        map.chain(secret).any(|item| item.user.is_some())
            || downward.into_iter().any(|item| item.user.is_some())
            || source.service_account_token.as_ref().is_some_and(|token| token.user.is_some())
    })
}

/// The field that names the kind, and why it is refused.
fn kind(volume: &Volume) -> (&'static str, &'static str) {
    const GONE: &str = "use a PersistentVolumeClaim of a CSI driver, once those are offered";
    if volume.host_path.is_some() {
        return ("hostPath", "guests do not get at the host's files in this version");
    }
    let offered_later = [
        (volume.persistent_volume_claim.is_some(), "persistentVolumeClaim"),
        (volume.ephemeral.is_some(), "ephemeral"),
        (volume.csi.is_some(), "csi"),
        (volume.image.is_some(), "image"),
        (volume.nfs.is_some(), "nfs"),
        (volume.iscsi.is_some(), "iscsi"),
        (volume.fc.is_some(), "fc"),
    ];
    let in_tree = [
        (volume.aws_elastic_block_store.is_some(), "awsElasticBlockStore"),
        (volume.azure_disk.is_some(), "azureDisk"),
        (volume.azure_file.is_some(), "azureFile"),
        (volume.cephfs.is_some(), "cephfs"),
        (volume.cinder.is_some(), "cinder"),
        (volume.flex_volume.is_some(), "flexVolume"),
        (volume.flocker.is_some(), "flocker"),
        (volume.gce_persistent_disk.is_some(), "gcePersistentDisk"),
        (volume.git_repo.is_some(), "gitRepo"),
        (volume.glusterfs.is_some(), "glusterfs"),
        (volume.photon_persistent_disk.is_some(), "photonPersistentDisk"),
        (volume.portworx_volume.is_some(), "portworxVolume"),
        (volume.quobyte.is_some(), "quobyte"),
        (volume.rbd.is_some(), "rbd"),
        (volume.scale_io.is_some(), "scaleIO"),
        (volume.storageos.is_some(), "storageos"),
        (volume.vsphere_volume.is_some(), "vsphereVolume"),
    ];
    if let Some((_, kind)) = offered_later.into_iter().find(|(is_it, _)| *is_it) {
        return (kind, NOT_YET);
    }
    if let Some((_, kind)) = in_tree.into_iter().find(|(is_it, _)| *is_it) {
        return (kind, GONE);
    }
    // A pod from a file may name none, and a newer API server one more.
    ("(source)", "no kind of volume that this version knows")
}
