//! Which kind of WebAssembly image a manifest describes, and which it is not.
//!
//! Pure. Accepted are a single Wasm layer (CNCF artifacts, runwasi's Wasm layers,
//! the first Krustlet's images) and a root file system of tar layers whose platform
//! is Wasm. What the bytes of a program are is told from the bytes, in
//! [`crate::preamble`], never from a media type.

use crate::image::ProgramConfig;
use crate::manifest::{Descriptor, ExecutionConfig, ImageConfig, Index, Manifest, Platform};

/// The layer of a CNCF Wasm artifact, and what `push` writes.
pub(crate) const WASM_LAYER: &str = "application/wasm";
/// The configuration of a CNCF Wasm artifact, and what `push` writes.
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// Layers that are one program each. The second was written by the first Krustlet,
/// `wasm-to-oci` and old Spin, the third by runwasi.
const WASM_LAYERS: [&str; 3] = [
    WASM_LAYER,
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

/// Configurations that say how to run the program.
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What only Spin applications have.
const SPIN_LAYERS: [&str; 3] = [
    "application/vnd.fermyon.spin.application.v1+config",
    "application/vnd.wasm.content.layer.v1+data",
    "application/vnd.wasm.content.bundle.v1.tar+gzip",
];
const SPIN_LABEL: &str = "com.fermyon.spin.lockedAppDigest";

/// crun and podman mark images that hold Wasm, whatever their platform says.
const COMPAT_ANNOTATION: &str = "module.wasm.image/variant";

/// How a layer's tar archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// An accepted image, before its layers are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The one layer is the program.
    Module { layer: Descriptor },
    /// The layers are a root file system, lowest first.
    RootFs { layers: Vec<(Descriptor, Compression)> },
}

/// Why an image cannot run on this node, whoever asks for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum FormatError {
    #[error(
        "image {image:?} has no WebAssembly variant (found: {}); this node runs wasi/wasm only. \
         Schedule it on another node, e.g. nodeSelector kubernetes.io/arch={architecture}",
        found.join(", ")
    )]
    NoWebAssembly { image: String, found: Vec<String>, architecture: String },
    #[error("image {image:?} is an index without an image for any platform")]
    EmptyIndex { image: String },
    #[error("image {image:?} is an index of indexes, nested too deep")]
    NestedIndex { image: String },
    #[error(
        "image {image:?} is a Spin application, which needs Spin's own host interfaces; \
         run it on a node with SpinKube (https://www.spinkube.dev)"
    )]
    Spin { image: String },
    #[error(
        "image {image:?} has {count} WebAssembly layers; this node cannot tell which is its program"
    )]
    ManyPrograms { image: String, count: usize },
    #[error("image {image:?} holds no WebAssembly: its content is of kind {kinds}")]
    NotAnImage { image: String, kinds: String },
    #[error("image {image:?} has no layers")]
    NoLayers { image: String },
    #[error("image {image:?} lists {layers} layers, but its configuration knows {known}")]
    LayerCount { image: String, layers: usize, known: usize },
}

/// Chooses the entry of an index that this node runs.
pub(crate) fn choose<'a>(image: &str, index: &'a Index) -> Result<&'a Descriptor, FormatError> {
    /// In order of preference, as (os, architecture).
    const PLATFORMS: [(&str, &str); 4] =
        [("wasi", "wasm"), ("wasip2", "wasm"), ("wasip1", "wasm"), ("wasi", "wasm32")];

    for (os, architecture) in PLATFORMS {
        let is_this = |platform: &Platform| {
            platform.os.eq_ignore_ascii_case(os)
                && platform.architecture.eq_ignore_ascii_case(architecture)
        };
        let found =
            index.manifests.iter().find(|entry| entry.platform.as_ref().is_some_and(is_this));
        if let Some(entry) = found {
            return Ok(entry);
        }
    }
    // An image that crun runs says so beside its platform.
    if let Some(entry) = index.manifests.iter().find(|entry| is_compat(entry.annotations.as_ref()))
    {
        return Ok(entry);
    }
    // Artifacts often name no platform: then their own content has to tell. Attestations,
    // which build tools add, call theirs "unknown".
    if let Some(entry) = index.manifests.iter().find(|entry| entry.platform.is_none()) {
        return Ok(entry);
    }
    let known = |platform: &&Platform| platform.os != "unknown";
    let found: Vec<_> =
        index.manifests.iter().filter_map(|entry| entry.platform.as_ref()).collect();
    let found: Vec<_> = found.into_iter().filter(known).cloned().collect();
    if found.is_empty() {
        return Err(FormatError::EmptyIndex { image: image.to_owned() });
    }
    Err(no_webassembly(image, &found))
}

fn no_webassembly(image: &str, platforms: &[Platform]) -> FormatError {
    // What the registry says goes into a message that people read: keep it short and plain.
    let plain = |text: &str| -> String {
        let text = if text.is_empty() { "unknown" } else { text };
        text.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(32).collect()
    };
    let mut found = Vec::new();
    for platform in platforms.iter().take(32) {
        let name = format!("{}/{}", plain(&platform.os), plain(&platform.architecture));
        if !found.contains(&name) {
            found.push(name);
        }
    }
    let linux = platforms.iter().find(|platform| platform.os == "linux").or(platforms.first());
    FormatError::NoWebAssembly {
        image: image.to_owned(),
        found,
        architecture: plain(linux.map_or("", |platform| &platform.architecture)),
    }
}

/// Whether a manifest's configuration says how to run the image. Others describe an
/// artifact, and need not even be JSON.
pub(crate) fn has_image_config(manifest: &Manifest) -> bool {
    IMAGE_CONFIGS.contains(&manifest.config.media_type.as_str())
}

/// Decides what an image is. `config` is empty where [`has_image_config`] is false.
pub(crate) fn shape(
    image: &str,
    manifest: &Manifest,
    config: &ImageConfig,
) -> Result<Shape, FormatError> {
    let image = || image.to_owned();
    if is_spin(manifest, config) {
        return Err(FormatError::Spin { image: image() });
    }
    let is_wasm = |layer: &&Descriptor| WASM_LAYERS.contains(&layer.media_type.as_str());
    let programs: Vec<_> = manifest.layers.iter().filter(is_wasm).collect();
    match (programs.as_slice(), manifest.layers.as_slice()) {
        (_, []) => return Err(FormatError::NoLayers { image: image() }),
        ([layer], [_]) => return Ok(Shape::Module { layer: (*layer).clone() }),
        ([_, ..], [_, ..]) if programs.len() == manifest.layers.len() => {
            return Err(FormatError::ManyPrograms { image: image(), count: programs.len() });
        }
        _ => {}
    }

    let layers: Option<Vec<_>> = manifest
        .layers
        .iter()
        .map(|layer| Some((layer.clone(), compression(&layer.media_type)?)))
        .collect();
    let Some(layers) = layers.filter(|_| has_image_config(manifest)) else {
        return Err(FormatError::NotAnImage { image: image(), kinds: kinds(manifest) });
    };
    if !is_wasm_platform(config) && !is_compat(manifest.annotations.as_ref()) {
        let platform =
            Platform { os: config.os.clone(), architecture: config.architecture.clone() };
        return Err(no_webassembly(&image(), &[platform]));
    }
    let known = config.rootfs.as_ref().map_or(0, |rootfs| rootfs.diff_ids.len());
    if known != layers.len() {
        return Err(FormatError::LayerCount { image: image(), layers: layers.len(), known });
    }
    Ok(Shape::RootFs { layers })
}

fn is_spin(manifest: &Manifest, config: &ImageConfig) -> bool {
    let labels = config.config.as_ref().and_then(|config| config.labels.as_ref());
    labels.is_some_and(|labels| labels.contains_key(SPIN_LABEL))
        || manifest.layers.iter().any(|layer| SPIN_LAYERS.contains(&layer.media_type.as_str()))
}

fn is_wasm_platform(config: &ImageConfig) -> bool {
    let is = |text: &str, any: &[&str]| any.iter().any(|one| text.eq_ignore_ascii_case(one));
    is(&config.os, &["wasi", "wasip1", "wasip2"]) || is(&config.architecture, &["wasm", "wasm32"])
}

fn is_compat(annotations: Option<&std::collections::BTreeMap<String, String>>) -> bool {
    let variant = annotations.and_then(|all| all.get(COMPAT_ANNOTATION));
    variant.is_some_and(|variant| variant == "compat" || variant == "compat-smart")
}

fn compression(media_type: &str) -> Option<Compression> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Some(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Compression::Zstd),
        _ => None,
    }
}

fn kinds(manifest: &Manifest) -> String {
    let mut kinds: Vec<String> = Vec::new();
    for layer in &manifest.layers {
        let kind: String = layer.media_type.escape_debug().take(80).collect();
        if !kinds.contains(&kind) && kinds.len() < 4 {
            kinds.push(kind);
        }
    }
    kinds.join(", ")
}

/// How the image wants to be run.
pub(crate) fn program_config(config: ImageConfig) -> ProgramConfig {
    let ExecutionConfig { entrypoint, cmd, env, working_dir, user, labels: _ } =
        config.config.unwrap_or_default();
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    ProgramConfig {
        entrypoint: entrypoint.unwrap_or_default(),
        cmd: cmd.unwrap_or_default(),
        env: env.unwrap_or_default(),
        working_dir: given(working_dir),
        user: given(user),
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
