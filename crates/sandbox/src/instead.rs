//! Functions in the place of wasmtime's own.
//!
//! A linker that allows shadowing takes any name. If wasmtime had its function by
//! another one, guests would be given that, and ours by nobody's notice never called.

use std::{future::Future, pin::Pin};

use wasmtime::{
    StoreContextMut,
    component::{Accessor, ComponentNamedList, Lift, Linker, LinkerInstance, Lower},
    ensure,
};

use crate::state::ComponentState;

/// Puts a function in the place of one of the same name.
///
/// # Errors
///
/// If there is none.
pub(crate) fn replace<Params, Return>(
    linker: &mut Linker<ComponentState>,
    instance: &str,
    name: &str,
    function: impl Fn(StoreContextMut<'_, ComponentState>, Params) -> wasmtime::Result<Return>
    + Copy
    + Send
    + Sync
    + 'static,
) -> wasmtime::Result<()>
where
    Params: ComponentNamedList + Lift + 'static,
    Return: ComponentNamedList + Lower + 'static,
{
    put(linker, instance, name, |mut linker| linker.func_wrap(name, function))
}

/// As [`replace`], one that may wait.
///
/// # Errors
///
/// As [`replace`].
pub(crate) fn replace_async<Params, Return>(
    linker: &mut Linker<ComponentState>,
    instance: &str,
    name: &str,
    function: impl Fn(
        StoreContextMut<'_, ComponentState>,
        Params,
    ) -> Box<dyn Future<Output = wasmtime::Result<Return>> + Send + '_>
    + Copy
    + Send
    + Sync
    + 'static,
) -> wasmtime::Result<()>
where
    Params: ComponentNamedList + Lift + 'static,
    Return: ComponentNamedList + Lower + 'static,
{
    put(linker, instance, name, |mut linker| linker.func_wrap_async(name, function))
}

/// As [`replace`], one beside which its guest may go on.
///
/// # Errors
///
/// As [`replace`].
pub(crate) fn replace_concurrent<Params, Return>(
    linker: &mut Linker<ComponentState>,
    instance: &str,
    name: &str,
    function: impl Fn(
        &Accessor<ComponentState>,
        Params,
    ) -> Pin<Box<dyn Future<Output = wasmtime::Result<Return>> + Send + '_>>
    + Copy
    + Send
    + Sync
    + 'static,
) -> wasmtime::Result<()>
where
    Params: ComponentNamedList + Lift + 'static,
    Return: ComponentNamedList + Lower + 'static,
{
    put(linker, instance, name, |mut linker| linker.func_wrap_concurrent(name, function))
}

fn put(
    linker: &mut Linker<ComponentState>,
    instance: &str,
    name: &str,
    define: impl Fn(LinkerInstance<'_, ComponentState>) -> wasmtime::Result<()>,
) -> wasmtime::Result<()> {
    // A name that is there can be given a second time only as a shadow.
    let is_there = define(linker.instance(instance)?).is_err();
    ensure!(is_there, "wasmtime has no `{name}` in `{instance}` to be replaced");
    linker.allow_shadowing(true);
    let replaced = linker.instance(instance).and_then(define);
    linker.allow_shadowing(false);
    replaced
}

#[cfg(test)]
mod tests {
    use wasmtime::Engine;

    use super::*;

    #[test]
    fn only_what_is_there_is_replaced() {
        let mut linker = Linker::new(&Engine::default());
        linker.instance("a:b/c@0.2.1").unwrap().func_wrap("one", |_, (): ()| Ok((0_u32,))).unwrap();
        let mut ours = |instance: &str, name: &str| {
            replace(&mut linker, instance, name, |_, (): ()| Ok((1_u32,)))
        };
        for _ in 0..2 {
            ours("a:b/c@0.2.1", "one").unwrap();
        }
        assert!(ours("a:b/c@0.2.1", "two").is_err());
        assert!(ours("a:b/c@0.2.0", "one").is_err(), "it is there by another version only");
    }
}
