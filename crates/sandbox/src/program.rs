//! A program, loaded and linked, ready for instances.
//!
//! The code comes from this node's compiler: the agent hands over the directory
//! it published it in, read-only. Loading maps the file; nothing is compiled
//! and nothing of the guest runs. What a program may import is
//! [`warm`](crate::warm)'s; naming what is missing is left to
//! [`offers`](crate::offers).

use std::{
    collections::HashMap,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Weak},
};

use krustlet_protocol::{Failure, GuestKind};
use rustix::fs::{Mode, OFlags};
use wasmtime::{Engine, ExternType, InstancePre, Module, component::Component};
use wasmtime_wasi::{p2::bindings as p2, p3::bindings as p3};
use wasmtime_wasi_http::{p2::bindings::ProxyPre, p3::bindings::ServicePre};

use crate::{
    container::within,
    offers,
    state::{ComponentState, ModuleState},
    warm::Warm,
};

/// What an instance is made of, and how it is entered.
pub(crate) enum Program {
    /// A core module, and the export to call.
    Module { linked: InstancePre<ModuleState>, export: String },
    /// A component with `wasi:cli/run`.
    Command(Command),
    /// A component that answers requests.
    Http(Handler),
}

/// By the version of WASI that its entry is of.
pub(crate) enum Command {
    P2(p2::CommandPre<ComponentState>),
    P3(p3::CommandPre<ComponentState>),
}

impl Command {
    pub(crate) fn engine(&self) -> &Engine {
        match self {
            Self::P2(command) => command.engine(),
            Self::P3(command) => command.engine(),
        }
    }
}

/// By the version of WASI that its entry is of.
#[derive(Clone)]
pub(crate) enum Handler {
    /// With `wasi:http/incoming-handler`.
    P2(ProxyPre<ComponentState>),
    /// With `wasi:http/handler`.
    P3(ServicePre<ComponentState>),
}

impl Handler {
    pub(crate) fn engine(&self) -> &Engine {
        match self {
            Self::P2(handler) => handler.engine(),
            Self::P3(handler) => handler.engine(),
        }
    }
}

/// The programs of one sandbox; each is loaded once, however many containers
/// run it, and let go with the last.
#[derive(Default)]
pub(crate) struct Programs(HashMap<Key, Weak<Program>>);

/// The file, by device and inode, and how it is entered.
type Key = (u64, u64, GuestKindKey);

/// [`GuestKind`] as a key: how a program is entered. Within which bounds is each
/// container's own.
type GuestKindKey = (u8, String);

impl Programs {
    /// Returns the program in `directory`, loading it if no container runs it.
    ///
    /// # Errors
    ///
    /// [`Failure::Unlinkable`] when it imports what this node does not offer,
    /// [`Failure::Malformed`] when the name or kind does not fit the file.
    pub(crate) fn get(
        &mut self,
        warm: &Warm,
        directory: &OwnedFd,
        name: &str,
        kind: &GuestKind,
    ) -> Result<Arc<Program>, Failure> {
        let file = open(directory, name)?;
        let metadata = rustix::fs::fstat(&file).map_err(|error| unreadable(name, &error))?;
        let key = (metadata.st_dev, metadata.st_ino, kind_key(kind));
        if let Some(program) = self.0.get(&key).and_then(Weak::upgrade) {
            return Ok(program);
        }
        let program = Arc::new(load(warm, directory, file, name, kind)?);
        self.0.retain(|_, program| program.strong_count() > 0);
        self.0.insert(key, Arc::downgrade(&program));
        Ok(program)
    }
}

fn kind_key(kind: &GuestKind) -> GuestKindKey {
    match kind {
        GuestKind::Module { export } => (0, export.clone()),
        GuestKind::Command => (1, String::new()),
        GuestKind::Http(_) => (2, String::new()),
    }
}

fn open(directory: &OwnedFd, name: &str) -> Result<File, Failure> {
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(Failure::Malformed { why: format!("{name:?} is no name of a file") });
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(directory.as_fd(), name, flags, Mode::empty())
        .map_err(|error| unreadable(name, &error))?;
    Ok(File::from(file))
}

fn unreadable(name: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::Failed { message: format!("cannot open the compiled program {name}: {error}") }
}

fn load(
    warm: &Warm,
    directory: &OwnedFd,
    file: File,
    name: &str,
    kind: &GuestKind,
) -> Result<Program, Failure> {
    match kind {
        GuestKind::Module { export } => {
            // SAFETY: made by this node's compiler, published by its agent, and
            // never written to after that; the header's version is checked.
            let module = unsafe { Module::deserialize_open_file(&warm.engine, file) }
                .map_err(|error| unloadable(name, &error))?;
            has_entry(&module, export)?;
            let linked = warm
                .modules
                .instantiate_pre(&module)
                .map_err(|error| offers::unlinkable_module(warm, &module, &error))?;
            Ok(Program::Module { linked, export: export.clone() })
        }
        GuestKind::Command => {
            let component = component(warm, directory, name)?;
            let linked = warm
                .components
                .instantiate_pre(&component)
                .map_err(|error| offers::unlinkable_component(warm, &component, &error))?;
            // Of two the newer.
            let command = if exports(warm, &component, "wasi:cli/run@0.3") {
                p3::CommandPre::new(linked).map(Command::P3)
            } else {
                p2::CommandPre::new(linked).map(Command::P2)
            };
            command.map(Program::Command).map_err(|error| no_entry(&error))
        }
        GuestKind::Http(_) => {
            let component = component(warm, directory, name)?;
            let linked = warm
                .components
                .instantiate_pre(&component)
                .map_err(|error| offers::unlinkable_component(warm, &component, &error))?;
            let handler = if exports(warm, &component, "wasi:http/handler@0.3") {
                ServicePre::new(linked).map(Handler::P3)
            } else {
                ProxyPre::new(linked).map(Handler::P2)
            };
            handler.map(Program::Http).map_err(|error| no_entry(&error))
        }
    }
}

/// Whether it exports an interface whose name and version begin so.
fn exports(warm: &Warm, component: &Component, start: &str) -> bool {
    component.component_type().exports(&warm.engine).any(|(name, _)| name.starts_with(start))
}

/// wasmtime 48 opens components by path only.
fn component(warm: &Warm, directory: &OwnedFd, name: &str) -> Result<Component, Failure> {
    let loaded = within(directory, || {
        // SAFETY: as for modules, above.
        unsafe { Component::deserialize_file(&warm.engine, name) }
    });
    loaded.map_err(|error| unreadable(name, &error))?.map_err(|error| unloadable(name, &error))
}

fn unloadable(name: &str, error: &wasmtime::Error) -> Failure {
    Failure::Failed { message: format!("cannot load the compiled program {name}: {error:#}") }
}

fn no_entry(error: &wasmtime::Error) -> Failure {
    Failure::Failed { message: format!("the component cannot be entered: {error:#}") }
}

fn has_entry(module: &Module, export: &str) -> Result<(), Failure> {
    let fits = match module.get_export(export) {
        Some(ExternType::Func(function)) => {
            function.params().len() == 0 && function.results().len() == 0
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(Failure::Failed {
        message: format!(
            "the module has no function {export:?} without parameters and results to start it by; \
             is it a library, or built for something else than WASI?"
        ),
    })
}
