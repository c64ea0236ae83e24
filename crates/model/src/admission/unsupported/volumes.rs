//! Kinds of volumes.

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, ConfigMapVolumeSource, DownwardAPIProjection, DownwardAPIVolumeFile,
    DownwardAPIVolumeSource, EmptyDirVolumeSource, KeyToPath, PodSpec, ProjectedVolumeSource,
    SecretProjection, SecretVolumeSource, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use super::{Found, NOT_YET};

const GONE: &str = "use a PersistentVolumeClaim of a CSI driver, once those are offered";
const HOST: &str = "guests do not get at the host's files in this version";
const USERS: &str = "all files belong to the pod's user";

pub(super) fn of_pod(spec: &PodSpec, found: &mut Found) {
    for volume in spec.volumes.iter().flatten() {
        found.at(format!("spec.volumes[{}]", volume.name));
        of_volume(volume, found);
    }
}

fn of_volume(volume: &Volume, found: &mut Found) {
    let Volume {
        name: _,
        // The kinds that `krustlet-volume` makes.
        config_map,
        downward_api,
        empty_dir,
        projected,
        secret,
        // The others.
        aws_elastic_block_store,
        azure_disk,
        azure_file,
        cephfs,
        cinder,
        csi,
        ephemeral,
        fc,
        flex_volume,
        flocker,
        gce_persistent_disk,
        git_repo,
        glusterfs,
        host_path,
        image,
        iscsi,
        nfs,
        persistent_volume_claim,
        photon_persistent_disk,
        portworx_volume,
        quobyte,
        rbd,
        scale_io,
        storageos,
        vsphere_volume,
    } = volume;
    let refused = [
        (aws_elastic_block_store.is_some(), "awsElasticBlockStore", GONE),
        (azure_disk.is_some(), "azureDisk", GONE),
        (azure_file.is_some(), "azureFile", GONE),
        (cephfs.is_some(), "cephfs", GONE),
        (cinder.is_some(), "cinder", GONE),
        (csi.is_some(), "csi", NOT_YET),
        (ephemeral.is_some(), "ephemeral", NOT_YET),
        (fc.is_some(), "fc", NOT_YET),
        (flex_volume.is_some(), "flexVolume", GONE),
        (flocker.is_some(), "flocker", GONE),
        (gce_persistent_disk.is_some(), "gcePersistentDisk", GONE),
        (git_repo.is_some(), "gitRepo", GONE),
        (glusterfs.is_some(), "glusterfs", GONE),
        (host_path.is_some(), "hostPath", HOST),
        (image.is_some(), "image", NOT_YET),
        (iscsi.is_some(), "iscsi", NOT_YET),
        (nfs.is_some(), "nfs", NOT_YET),
        (persistent_volume_claim.is_some(), "persistentVolumeClaim", NOT_YET),
        (photon_persistent_disk.is_some(), "photonPersistentDisk", GONE),
        (portworx_volume.is_some(), "portworxVolume", GONE),
        (quobyte.is_some(), "quobyte", GONE),
        (rbd.is_some(), "rbd", GONE),
        (scale_io.is_some(), "scaleIO", GONE),
        (storageos.is_some(), "storageos", GONE),
        (vsphere_volume.is_some(), "vsphereVolume", GONE),
    ];
    let mut has_source = false;
    for (is_used, kind, why) in refused {
        found.refuse(is_used, kind, why);
        has_source |= is_used;
    }
    if let Some(source) = config_map {
        of_config_map(source, found);
        has_source = true;
    }
    if let Some(source) = downward_api {
        of_downward_api(source, found);
        has_source = true;
    }
    if let Some(source) = empty_dir {
        of_empty_dir(source, found);
        has_source = true;
    }
    if let Some(source) = projected {
        of_projected(source, found);
        has_source = true;
    }
    if let Some(source) = secret {
        of_secret(source, found);
        has_source = true;
    }
    // A pod from a file may name none, and a newer API server one more.
    found.refuse(!has_source, "(source)", "no kind of volume that this version knows");
}

fn of_empty_dir(source: &EmptyDirVolumeSource, found: &mut Found) {
    // The limit is carried out by `volume`, and by `storage` of `pod`.
    let EmptyDirVolumeSource { medium, mode, size_limit: _ } = source;
    found.refuse(
        !matches!(medium.as_deref().unwrap_or_default(), "" | "Memory"),
        "emptyDir.medium",
        "a WebAssembly program cannot use huge pages",
    );
    found.refuse(mode.is_some(), "emptyDir.mode", NOT_YET);
}

fn of_config_map(source: &ConfigMapVolumeSource, found: &mut Found) {
    let ConfigMapVolumeSource { default_user, items, default_mode: _, name: _, optional: _ } =
        source;
    let own = default_user.is_some() || key_has_user(items.as_ref());
    found.refuse(own, "configMap.defaultUser", USERS);
}

fn of_secret(source: &SecretVolumeSource, found: &mut Found) {
    let SecretVolumeSource { default_user, items, default_mode: _, optional: _, secret_name: _ } =
        source;
    let own = default_user.is_some() || key_has_user(items.as_ref());
    found.refuse(own, "secret.defaultUser", USERS);
}

fn of_downward_api(source: &DownwardAPIVolumeSource, found: &mut Found) {
    let DownwardAPIVolumeSource { default_user, items, default_mode: _ } = source;
    let own = default_user.is_some() || field_has_user(items.as_ref());
    found.refuse(own, "downwardAPI.defaultUser", USERS);
}

fn of_projected(source: &ProjectedVolumeSource, found: &mut Found) {
    let ProjectedVolumeSource { default_user, sources, default_mode: _ } = source;
    found.refuse(default_user.is_some(), "projected.defaultUser", USERS);
    let (mut bundle, mut certificate, mut own) = (false, false, false);
    for source in sources.iter().flatten() {
        let VolumeProjection {
            cluster_trust_bundle,
            config_map,
            downward_api,
            pod_certificate,
            secret,
            service_account_token,
        } = source;
        bundle |= cluster_trust_bundle.is_some();
        certificate |= pod_certificate.is_some();
        if let Some(ConfigMapProjection { items, name: _, optional: _ }) = config_map {
            own |= key_has_user(items.as_ref());
        }
        if let Some(DownwardAPIProjection { items }) = downward_api {
            own |= field_has_user(items.as_ref());
        }
        if let Some(SecretProjection { items, name: _, optional: _ }) = secret {
            own |= key_has_user(items.as_ref());
        }
        if let Some(token) = service_account_token {
            let ServiceAccountTokenProjection { user, audience: _, expiration_seconds: _, path: _ } =
                token;
            own |= user.is_some();
        }
    }
    found.refuse(bundle, "projected.sources.clusterTrustBundle", NOT_YET);
    found.refuse(certificate, "projected.sources.podCertificate", NOT_YET);
    found.refuse(own, "projected.sources.user", USERS);
}

fn key_has_user(items: Option<&Vec<KeyToPath>>) -> bool {
    items.into_iter().flatten().any(|item| {
        let KeyToPath { user, key: _, mode: _, path: _ } = item;
        user.is_some()
    })
}

fn field_has_user(items: Option<&Vec<DownwardAPIVolumeFile>>) -> bool {
    items.into_iter().flatten().any(|item| {
        let DownwardAPIVolumeFile { user, field_ref: _, mode: _, path: _, resource_field_ref: _ } =
            item;
        user.is_some()
    })
}
