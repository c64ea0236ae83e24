//! How long a termination message may be.

/// Bytes of one container's termination message.
///
/// Source: kubelet, `MaxContainerTerminationMessageLength` in
/// `pkg/kubelet/container/runtime.go`.
pub const MAX_TERMINATION_MESSAGE: usize = 4096;

/// Bytes of the termination messages of all containers of a pod together; each
/// container gets an equal share.
///
/// Source: kubelet, `MaxPodTerminationMessageLogLength` in
/// `pkg/kubelet/container/runtime.go`.
pub const MAX_POD_TERMINATION_MESSAGES: usize = 12 * 1024;

/// The share of one of `containers` containers, in bytes.
pub(super) fn share(containers: usize) -> usize {
    MAX_POD_TERMINATION_MESSAGES / containers.max(1)
}

/// The longest start of `text` that has at most `bytes` bytes and cuts no
/// character in two.
#[must_use]
pub fn truncated(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cut_is_a_short_start(text in ".{0,40}", bytes in 0_usize..60) {
            let cut = truncated(&text, bytes);
            prop_assert!(cut.len() <= bytes);
            prop_assert!(text.starts_with(cut));
            prop_assert!(cut.len() + 4 > bytes.min(text.len()));
        }
    }
}
