//! How many files guests have open.
//!
//! Each takes a descriptor of the process, which all pods of a sandbox share, and
//! memory of the kernel's, which no limit counts. wasmtime opens as many as it is
//! asked for; so here are bounds, and the calls of components that they hold for.
//! Those of modules are [`preview1`](crate::preview1)'s.
//!
//! A component's file is open as long as anybody has it: the guest in a descriptor,
//! or a stream that it has made of one and that outlives it.

use std::{
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use wasmtime::component::{Accessor, Linker, Resource, ResourceTable};
use wasmtime_wasi::{
    filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView},
    p2::bindings::filesystem::types as p2,
    p3::bindings::filesystem::types as p3,
};

use crate::{
    instead::{replace_async, replace_concurrent},
    state::ComponentState,
};

/// Files and directories that the instances of a container have open together, or
/// one of a module: as many as a pod has sockets by default. A process may have
/// 20,000 descriptors at least.
pub(crate) const FILES: usize = 4096;

/// Files after which it is looked for the first time which are closed.
const FIRST_LOOK: usize = 64;

/// Where wasmtime has the calls whose place is taken, and their name.
const TYPES_2: &str = "wasi:filesystem/types@0.2.12";
const TYPES_3: &str = "wasi:filesystem/types@0.3.0";
const OPEN: &str = "[method]descriptor.open-at";

/// Those of one container.
#[derive(Debug, Default)]
pub(crate) struct Files(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Some may be closed.
    open: Vec<Weak<File>>,
    /// Places that wait for their file.
    opening: usize,
    /// Of so many it is looked next which are closed.
    next_look: usize,
}

/// The right to open one more.
#[derive(Debug)]
struct Place(Arc<Files>);

impl Files {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None if there are as many as there may be.
    fn place(self: Arc<Self>) -> Option<Place> {
        let mut known = self.lock();
        let is_full = known.open.len() + known.opening >= FILES;
        if is_full || known.open.len() >= known.next_look.max(FIRST_LOOK) {
            known.open.retain(|file| file.strong_count() > 0);
            known.next_look = known.open.len() * 2;
        }
        if known.open.len() + known.opening >= FILES {
            return None;
        }
        known.opening += 1;
        drop(known);
        Some(Place(self))
    }
}

impl Place {
    fn give_to(self, opened: &Descriptor) {
        let file = match opened {
            Descriptor::File(file) => &file.file,
            Descriptor::Dir(directory) => &directory.dir,
        };
        self.0.lock().open.push(Arc::downgrade(file));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().opening -= 1;
    }
}

/// Those of one module's instance, as far as is known: what it has closed is found
/// out when it has as many as it may.
#[derive(Debug)]
pub(crate) struct ModuleFiles(usize);

impl ModuleFiles {
    /// Those of one that finds so many directories open.
    pub(crate) fn new(directories: usize) -> Self {
        Self(directories)
    }

    /// Whether it may open one more than are in its table.
    pub(crate) fn has_room(&mut self, table: &mut ResourceTable) -> bool {
        if self.0 >= FILES {
            self.0 = table.iter_mut().filter(|entry| entry.is::<Descriptor>()).count();
        }
        self.0 < FILES
    }

    pub(crate) fn opened(&mut self) {
        self.0 += 1;
    }
}

/// Puts these in the place of wasmtime's, of both versions.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    replace_async(linker, TYPES_2, OPEN, |mut store, asked: Asked2| {
        Box::new(async move { Ok((open_2(store.data_mut(), asked).await?,)) })
    })?;
    replace_concurrent(linker, TYPES_3, OPEN, |store, asked: Asked3| {
        Box::pin(async move { Ok((open_3(store, asked).await?,)) })
    })
}

type Handle = Resource<Descriptor>;
type Asked2 = (Handle, p2::PathFlags, String, p2::OpenFlags, p2::DescriptorFlags);
type Asked3 = (Handle, p3::PathFlags, String, p3::OpenFlags, p3::DescriptorFlags);

/// A guest that may have no more is told that memory is short: WASI has no nearer
/// word.
async fn open_2(
    state: &mut ComponentState,
    (directory, look, path, how, flags): Asked2,
) -> wasmtime::Result<Result<Handle, p2::ErrorCode>> {
    let Some(place) = state.files().place() else {
        return Ok(Err(p2::ErrorCode::InsufficientMemory));
    };
    let mut view = state.filesystem();
    let opened = p2::HostDescriptor::open_at(&mut view, directory, look, path, how, flags).await;
    Ok(match opened {
        Ok(opened) => {
            place.give_to(view.table.get(&opened)?);
            Ok(opened)
        }
        Err(error) => Err(error.downcast()?),
    })
}

/// As [`open_2`].
async fn open_3(
    store: &Accessor<ComponentState>,
    (directory, look, path, how, flags): Asked3,
) -> wasmtime::Result<Result<Handle, p3::ErrorCode>> {
    let Some(place) = store.with(|mut store| store.get().files().place()) else {
        return Ok(Err(p3::ErrorCode::InsufficientMemory));
    };
    let view = store.with_getter::<WasiFilesystem>(ComponentState::filesystem);
    let opened =
        p3::HostDescriptorWithStore::open_at(&view, directory, look, path, how, flags).await;
    match opened {
        Ok(opened) => {
            view.with(|mut store| -> wasmtime::Result<()> {
                place.give_to(store.get().table.get(&opened)?);
                Ok(())
            })?;
            Ok(Ok(opened))
        }
        Err(error) => Ok(Err(error.downcast()?)),
    }
}

#[cfg(test)]
mod tests {
    use krustlet_protocol::Limits;
    use wasmtime_wasi::{
        FsPerms, WasiCtxBuilder,
        filesystem::{File as WasiFile, OpenMode},
        p2::bindings::filesystem::preopens::Host as _,
    };

    use super::*;
    use crate::{
        net::Stack,
        outgoing::{Hooks, Whose},
        state::{Budget, Usage},
    };

    /// An instance of a container with a directory, and what it is by.
    fn instance(usage: &Arc<Usage>, directory: &std::path::Path) -> (ComponentState, u32) {
        let mut wasi = WasiCtxBuilder::new();
        wasi.preopened_dir(directory, "/data", FsPerms::ReadWrite).unwrap();
        let whose = Whose { own: None, usage: Arc::clone(usage) };
        let hooks = Hooks::new(Stack::default(), Arc::new(whose));
        let budget = Budget::new(Arc::clone(usage));
        let mut state = ComponentState::new(wasi.build(), budget, hooks, None);
        let directories = state.filesystem().get_directories().unwrap();
        (state, directories[0].0.rep())
    }

    async fn open(state: &mut ComponentState, directory: u32) -> Result<Handle, p2::ErrorCode> {
        open_at(state, directory, "file").await
    }

    async fn open_at(
        state: &mut ComponentState,
        directory: u32,
        path: &str,
    ) -> Result<Handle, p2::ErrorCode> {
        let asked = (
            Resource::new_borrow(directory),
            p2::PathFlags::empty(),
            path.to_owned(),
            p2::OpenFlags::CREATE,
            p2::DescriptorFlags::READ,
        );
        open_2(state, asked).await.unwrap()
    }

    fn close(state: &mut ComponentState, file: Handle) {
        p2::HostDescriptor::drop(&mut state.filesystem(), file).unwrap();
    }

    #[tokio::test]
    async fn the_instances_of_a_container_have_so_many_files_open_and_no_more() {
        let usage = Arc::new(Usage::new(&Limits::default()));
        let home = tempfile::tempdir().unwrap();
        let (mut one, its) = instance(&usage, home.path());
        let (mut other, others) = instance(&usage, home.path());
        // All but two; halves of them are one file each, opened so often.
        let [some, more] = [(); 2].map(|()| {
            let file = tempfile::tempfile().unwrap();
            Descriptor::File(WasiFile::new(file, FsPerms::ReadOnly, OpenMode::READ, false))
        });
        for file in [&some, &more] {
            for _ in 0..FILES / 2 - 1 {
                one.files().place().unwrap().give_to(file);
            }
        }
        let first = open(&mut one, its).await.unwrap();
        let second = open(&mut other, others).await.unwrap();
        for _ in 0..2 {
            let refused = open(&mut one, its).await.unwrap_err();
            assert_eq!(refused, p2::ErrorCode::InsufficientMemory);
            assert!(open(&mut other, others).await.is_err());
        }
        // A stream has its file as long as it is there itself.
        let again = Resource::new_borrow(first.rep());
        let stream = p2::HostDescriptor::read_via_stream(&mut one.filesystem(), again, 0).unwrap();
        close(&mut one, first);
        assert!(open(&mut one, its).await.is_err());
        drop(one.filesystem().table.delete(stream).unwrap());
        let third = open(&mut one, its).await.unwrap();
        assert!(open(&mut one, its).await.is_err());
        // What could not be opened takes no place.
        close(&mut other, second);
        for _ in 0..2 {
            let nowhere = open_at(&mut other, others, "nowhere/file").await.unwrap_err();
            assert_eq!(nowhere, p2::ErrorCode::NoEntry);
        }
        close(&mut one, third);
        drop(some);
        for _ in 0..=FILES / 2 {
            one.files().place().unwrap().give_to(&more);
        }
        assert!(open(&mut one, its).await.is_err());
    }

    #[test]
    fn a_module_that_closes_files_may_open_others() {
        let (mut files, mut table) = (ModuleFiles::new(0), ResourceTable::new());
        let file = tempfile::tempfile().unwrap();
        let file = WasiFile::new(file, FsPerms::ReadOnly, OpenMode::READ, false);
        let mut open = Vec::new();
        while files.has_room(&mut table) {
            open.push(table.push(Descriptor::File(file.clone())).unwrap());
            files.opened();
        }
        assert_eq!(open.len(), FILES);
        assert!(!files.has_room(&mut table));
        table.delete(open.pop().unwrap()).unwrap();
        assert!(files.has_room(&mut table));
    }
}
