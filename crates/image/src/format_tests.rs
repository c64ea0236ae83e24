use proptest::prelude::*;

use super::*;
use crate::digest::Digest;
use crate::manifest::RootFs;

fn blob(media_type: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(media_type.as_bytes()),
        size: 1,
        platform: None,
        annotations: None,
    }
}

fn entry(platform: &str) -> Descriptor {
    let (os, architecture) = platform.split_once('/').unwrap();
    let platform = Platform { os: os.to_owned(), architecture: architecture.to_owned() };
    Descriptor { platform: Some(platform), ..blob(crate::manifest::OCI_MANIFEST) }
}

fn index(platforms: &[&str]) -> Index {
    Index { manifests: platforms.iter().map(|platform| entry(platform)).collect() }
}

fn manifest(config: &str, layers: &[&str]) -> Manifest {
    Manifest {
        config: blob(config),
        layers: layers.iter().map(|layer| blob(layer)).collect(),
        annotations: None,
    }
}

fn config(os: &str, architecture: &str, layers: usize) -> ImageConfig {
    ImageConfig {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        config: None,
        rootfs: Some(RootFs { diff_ids: vec![Digest::of(b""); layers] }),
    }
}

const OCI_CONFIG: &str = IMAGE_CONFIGS[0];
const TAR_GZ: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[test]
fn an_image_for_linux_only_gets_the_message_that_says_what_to_do() {
    let index = index(&["linux/amd64", "linux/arm64", "unknown/unknown", "linux/arm64"]);
    let error = choose("nginx:1.28", &index).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image \"nginx:1.28\" has no WebAssembly variant (found: linux/amd64, linux/arm64); \
         this node runs wasi/wasm only. Schedule it on another node, e.g. nodeSelector \
         kubernetes.io/arch=amd64"
    );
    let single = manifest(OCI_CONFIG, &[TAR_GZ]);
    let error = shape("redis", &single, &config("linux", "arm64", 1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image \"redis\" has no WebAssembly variant (found: linux/arm64); this node runs \
         wasi/wasm only. Schedule it on another node, e.g. nodeSelector kubernetes.io/arch=arm64"
    );
}

#[test]
fn the_order_of_platforms_is_kept_whatever_the_order_in_the_index() {
    let order = ["wasi/wasm", "wasip2/wasm", "wasip1/wasm", "wasi/wasm32"];
    for first in 0..order.len() {
        let mut platforms = vec!["linux/amd64"];
        platforms.extend(order[first..].iter().rev());
        let index = index(&platforms);
        let chosen = choose("a", &index).unwrap().platform.clone().unwrap();
        assert_eq!(format!("{}/{}", chosen.os, chosen.architecture), order[first]);
    }
}

#[test]
fn an_entry_without_a_platform_is_tried_last() {
    let mut index = index(&["linux/amd64"]);
    index.manifests.push(blob("artifact"));
    assert_eq!(choose("a", &index).unwrap().media_type, "artifact");
}

#[test]
fn every_kind_of_single_wasm_layer_is_a_module() {
    for layer in WASM_LAYERS {
        for kind in [WASM_CONFIG, "application/vnd.wasm.config.v1+json", OCI_CONFIG] {
            let manifest = manifest(kind, &[layer]);
            let shape = shape("a", &manifest, &ImageConfig::default()).unwrap();
            assert!(matches!(shape, Shape::Module { .. }), "{layer} with {kind}");
        }
    }
}

#[test]
fn tar_layers_of_a_wasm_platform_are_a_root_file_system() {
    let tars = [TAR_GZ, "application/vnd.oci.image.layer.v1.tar+zstd"];
    let manifest = manifest(OCI_CONFIG, &tars);
    for (os, architecture) in [("wasi", "wasm"), ("wasi", "wasm32"), ("wasip1", "wasm")] {
        let shape = shape("a", &manifest, &config(os, architecture, 2)).unwrap();
        let Shape::RootFs { layers } = shape else { panic!("{os}/{architecture}") };
        assert_eq!(layers[0].1, Compression::Gzip);
        assert_eq!(layers[1].1, Compression::Zstd);
    }
    let error = shape("a", &manifest, &config("wasi", "wasm", 1)).unwrap_err();
    assert!(matches!(error, FormatError::LayerCount { layers: 2, known: 1, .. }));
}

#[test]
fn cruns_annotation_stands_for_a_wasm_platform() {
    let mut manifest = manifest(OCI_CONFIG, &[TAR_GZ]);
    let linux = config("linux", "amd64", 1);
    for variant in ["compat", "compat-smart"] {
        manifest.annotations = Some([(COMPAT_ANNOTATION.to_owned(), variant.to_owned())].into());
        assert!(matches!(shape("a", &manifest, &linux), Ok(Shape::RootFs { .. })));
    }
    manifest.annotations = Some([(COMPAT_ANNOTATION.to_owned(), "other".to_owned())].into());
    assert!(shape("a", &manifest, &linux).is_err());
}

#[test]
fn a_spin_application_is_sent_to_spinkube() {
    for layer in SPIN_LAYERS {
        let manifest = manifest(OCI_CONFIG, &["application/vnd.wasm.content.layer.v1+wasm", layer]);
        let error = shape("spin:1", &manifest, &config("Wasip1", "Wasm", 0)).unwrap_err();
        assert!(error.to_string().contains("SpinKube"), "{error}");
    }
    let manifest = manifest(OCI_CONFIG, &[WASM_LAYER]);
    let mut labelled = config("Wasip1", "Wasm", 0);
    let labels = [(SPIN_LABEL.to_owned(), "sha256:x".to_owned())].into();
    labelled.config = Some(ExecutionConfig { labels: Some(labels), ..ExecutionConfig::default() });
    assert!(matches!(shape("a", &manifest, &labelled), Err(FormatError::Spin { .. })));
}

#[test]
fn what_holds_no_program_or_several_is_refused() {
    let none = ImageConfig::default();
    let helm = manifest("application/vnd.cncf.helm.config.v1+json", &["application/helm"]);
    let error = shape("chart", &helm, &none).unwrap_err();
    assert!(error.to_string().contains("application/helm"), "{error}");
    let two = manifest(WASM_CONFIG, &[WASM_LAYER, WASM_LAYER]);
    assert!(matches!(shape("a", &two, &none), Err(FormatError::ManyPrograms { count: 2, .. })));
    let empty = manifest(WASM_CONFIG, &[]);
    assert!(matches!(shape("a", &empty, &none), Err(FormatError::NoLayers { .. })));
    let mixed = manifest(OCI_CONFIG, &[WASM_LAYER, TAR_GZ]);
    assert!(matches!(shape("a", &mixed, &none), Err(FormatError::NotAnImage { .. })));
}

proptest! {
    #[test]
    fn a_chosen_entry_is_never_for_linux_and_no_text_of_an_index_panics(
        platforms in prop::collection::vec(("[a-zA-Z0-9\u{0}-\u{ff}]{0,12}|linux|wasi", ".{0,12}|wasm|amd64"), 0..6)
    ) {
        let manifests = platforms
            .into_iter()
            .map(|(os, architecture)| Descriptor {
                platform: Some(Platform { os, architecture }),
                ..blob("x")
            })
            .collect();
        match choose("a", &Index { manifests }) {
            Ok(entry) => prop_assert!(entry.platform.as_ref().is_some_and(|p| p.os != "linux")),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
