//! Programs for pods: an image from the image store, compiled by the compiler.

use std::{path::PathBuf, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use krustlet_compiler::{Artifacts, ProgramKind};
use krustlet_image::{Content, Image, ImageRequest, Images, ProgramConfig, PullReport};
use krustlet_model::Chain;
use krustlet_pod::{
    guest::ProgramShape,
    outside::{ImageFailure, LoadFailure, Program, Programs, PulledImage},
};
use tokio::task::spawn_blocking;

/// Images and artifacts of this node.
#[derive(Clone, Debug)]
pub(crate) struct LocalPrograms {
    pub(crate) images: Images,
    pub(crate) artifacts: Artifacts,
}

impl Programs for LocalPrograms {
    fn ensure(
        &self,
        request: ImageRequest,
    ) -> BoxFuture<'static, Result<Arc<dyn PulledImage>, ImageFailure>> {
        let this = self.clone();
        async move {
            let ensured = this.images.ensure(request).await.map_err(|error| ImageFailure {
                reason: error.reason(),
                message: Chain(&error).to_string(),
            })?;
            let pulled =
                Pulled { image: ensured.image, pull: ensured.pull, artifacts: this.artifacts };
            Ok(Arc::new(pulled) as Arc<dyn PulledImage>)
        }
        .boxed()
    }
}

/// An image that is here.
struct Pulled {
    image: Image,
    pull: Option<PullReport>,
    artifacts: Artifacts,
}

impl PulledImage for Pulled {
    fn id(&self) -> &str {
        &self.image.id
    }

    fn config(&self) -> &ProgramConfig {
        &self.image.config
    }

    fn bytes(&self) -> u64 {
        self.image.bytes
    }

    fn pull(&self) -> Option<PullReport> {
        self.pull
    }

    fn program(&self, argv0: Option<String>) -> BoxFuture<'static, Result<Program, LoadFailure>> {
        load(self.image.clone(), self.artifacts.clone(), argv0).boxed()
    }
}

async fn load(
    image: Image,
    artifacts: Artifacts,
    argv0: Option<String>,
) -> Result<Program, LoadFailure> {
    let root: Option<PathBuf> = match &image.content {
        Content::RootFs { path } => Some(path.clone()),
        Content::Module { .. } => None,
    };
    let found = {
        let image = image.clone();
        // Finding a program in a root file system reads all of it once.
        spawn_blocking(move || image.program(argv0.as_deref())).await
    };
    let program = match found {
        Ok(Ok(program)) => program,
        Ok(Err(error)) => {
            let (reason, message) = (error.reason(), Chain(&error).to_string());
            return Err(LoadFailure { reason, message });
        }
        Err(error) => {
            let message = format!("looking for the program failed: {error}");
            return Err(LoadFailure { reason: "CreateContainerError", message });
        }
    };
    let artifact = artifacts.artifact(&program.path, &program.digest).await.map_err(|error| {
        LoadFailure { reason: error.reason(), message: Chain(&error).to_string() }
    })?;
    let exports = artifact.inspection.exports;
    let shape = match artifact.inspection.kind {
        ProgramKind::Module => ProgramShape::Module { exports },
        ProgramKind::Command => ProgramShape::Command,
        ProgramKind::Http => ProgramShape::Http,
        ProgramKind::Other => ProgramShape::Other { exports },
    };
    Ok(Program {
        directory: artifact.directory,
        file: artifact.file,
        shape,
        entry: program.entry,
        root,
        hold: Arc::new(image.lease.clone()),
    })
}
