//! Whether a pod gets an image that is here, or has to prove to the registry that it may have it.
//!
//! ```text
//! policy says: not verified ─────────────▶ given
//! policy says: verified ──every pod may───▶ given
//!                       ──Secret known────▶ given (and what is new about the Secret is learned)
//!                       ──none of these───▶ the registry is asked, with the pod's own logins
//! ```
//!
//! Pure. What is known about an image is [`crate::access`]'s matter; asking is the pull's.
//!
//! Source: kubelet, `MustAttemptImagePull` in `pkg/kubelet/images/pullmanager/image_pull_manager.go` and
//! `image_pull_policies.go` beside it (feature `KubeletEnsureSecretPulledImages`, on since 1.35).

use crate::access::{Access, SecretRight};
use crate::reference::{Reference, ReferenceError};

/// Secrets known of one image up to which a further one is learned without asking the registry.
///
/// Source: kubelet, `writeRecordWhileMatchingLimit`.
const LEARN_LIMIT: usize = 100;

/// Which images that are here are given out without verifying the pod's credentials.
///
/// The names are those of `imagePullCredentialsVerificationPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VerificationPolicy {
    /// All.
    NeverVerify,
    /// Those that the operator brought.
    #[default]
    NeverVerifyPreloadedImages,
    /// Those of this list.
    NeverVerifyAllowlistedImages(Allowlist),
    /// None.
    AlwaysVerify,
}

/// Images that every pod may have once they are here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowlist {
    names: Vec<String>,
    /// Ending with a slash.
    prefixes: Vec<String>,
}

/// Why a policy of verification is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum PolicyError {
    #[error(
        "imagePullCredentialsVerificationPolicy: {given:?} is none of NeverVerify, \
         NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages, AlwaysVerify"
    )]
    Unknown { given: String },
    #[error(
        "preloadedImagesVerificationAllowlist: only counts with \
         imagePullCredentialsVerificationPolicy NeverVerifyAllowlistedImages; set that or remove the list"
    )]
    ListWithoutUse,
    #[error("preloadedImagesVerificationAllowlist: {pattern:?} {what}")]
    Pattern { pattern: String, what: &'static str },
    #[error("preloadedImagesVerificationAllowlist: {pattern:?} is not an image's name")]
    Name {
        pattern: String,
        #[source]
        source: ReferenceError,
    },
}

impl VerificationPolicy {
    /// Reads the two fields of a `KubeletConfiguration`; without a policy, the kubelet's default.
    ///
    /// Source: kubelet, `ValidateKubeletConfiguration` in
    /// `pkg/kubelet/apis/config/validation/validation.go`.
    ///
    /// # Errors
    ///
    /// [`PolicyError`], which names the field and what would do.
    pub fn new(policy: Option<&str>, allowlist: &[String]) -> Result<Self, PolicyError> {
        let read = match policy {
            Some("NeverVerify") => Self::NeverVerify,
            None | Some("NeverVerifyPreloadedImages" | "") => Self::NeverVerifyPreloadedImages,
            Some("NeverVerifyAllowlistedImages") => {
                return Allowlist::new(allowlist).map(Self::NeverVerifyAllowlistedImages);
            }
            Some("AlwaysVerify") => Self::AlwaysVerify,
            Some(other) => return Err(PolicyError::Unknown { given: other.to_owned() }),
        };
        if allowlist.is_empty() { Ok(read) } else { Err(PolicyError::ListWithoutUse) }
    }

    /// Whether credentials are verified for an image. `given` is its name as the pod has it.
    fn verifies(&self, given: &str, reference: &Reference, access: &Access) -> bool {
        match self {
            Self::NeverVerify => false,
            Self::NeverVerifyPreloadedImages => !access.preloaded,
            Self::NeverVerifyAllowlistedImages(list) => !list.holds(given, reference),
            Self::AlwaysVerify => true,
        }
    }
}

impl Allowlist {
    /// Reads patterns: the name of an image without tag and digest, or the beginning of one followed by `/*`.
    ///
    /// Source: kubelet, `getAllowlistImagePattern` in `image_pull_policies.go`.
    fn new(patterns: &[String]) -> Result<Self, PolicyError> {
        let mut list = Self::default();
        for pattern in patterns {
            let wrong = |what| Err(PolicyError::Pattern { pattern: pattern.clone(), what });
            if pattern.trim() != pattern {
                return wrong("begins or ends with a space");
            }
            let prefix = pattern.strip_suffix('*').filter(|rest| rest.ends_with('/'));
            if prefix.unwrap_or(pattern).contains('*') {
                return wrong("may hold '*' only as '/*' at its end");
            }
            match prefix {
                Some("/") => return wrong("names no registry before '/*'"),
                Some(prefix) => list.prefixes.push(prefix.to_owned()),
                None => {
                    pattern
                        .parse::<Reference>()
                        .map_err(|source| PolicyError::Name { pattern: pattern.clone(), source })?;
                    if bare_name(pattern) != pattern {
                        return wrong("has a tag or digest; only the name counts");
                    }
                    list.names.push(pattern.clone());
                }
            }
        }
        Ok(list)
    }

    /// Whether an image is listed, as its name is written or as it is in full: `nginx` is found by
    /// `docker.io/library/*` too, other than in the kubelet, which knows the written form only.
    fn holds(&self, given: &str, reference: &Reference) -> bool {
        [bare_name(given), &reference.name()].into_iter().any(|name| {
            self.names.iter().any(|listed| listed == name)
                || self.prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
        })
    }
}

/// A reference's text without its tag and digest.
fn bare_name(text: &str) -> &str {
    let rest = text.split_once('@').map_or(text, |(rest, _)| rest);
    match rest.rsplit_once(':') {
        // A colon before the last slash is a port's.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => rest,
    }
}

/// A pod that wants an image that is here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'a> {
    /// The image's name as the pod has it.
    pub given: &'a str,
    /// The same in full.
    pub reference: &'a Reference,
    /// The pod's Secrets with a login that fits the image.
    pub secrets: &'a [SecretRight],
}

/// What is done about a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It gets the image.
    Given,
    /// It gets the image, and this is to be remembered: a known login in another Secret, or a new login in
    /// a known one.
    GivenAndLearned(SecretRight),
    /// The registry has to be asked.
    Unproven,
}

/// Decides about a claim to an image, given all that is known about the image.
pub(crate) fn judge(policy: &VerificationPolicy, claim: Claim<'_>, access: &Access) -> Verdict {
    if !policy.verifies(claim.given, claim.reference, access) || access.node_pods_accessible {
        return Verdict::Given;
    }
    let known = &access.kubernetes_secrets;
    let may_learn = known.len() < LEARN_LIMIT;
    for secret in claim.secrets {
        if known.contains(secret) {
            return Verdict::Given;
        }
        if known.iter().any(|known| known.credential_hash == secret.credential_hash) {
            return if may_learn {
                Verdict::GivenAndLearned(secret.clone())
            } else {
                Verdict::Given
            };
        }
        // The Secret's owner has shown it; that its login was renewed is no reason to doubt. Without a uid
        // (a manifest's, outside a cluster) it may be another Secret.
        let is_known = known.iter().any(|known| known.source == secret.source);
        if may_learn && is_known && !secret.source.uid.is_empty() {
            return Verdict::GivenAndLearned(secret.clone());
        }
    }
    Verdict::Unproven
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::access::{Right, SecretSource};

    fn secret() -> impl Strategy<Value = SecretRight> {
        (0..3u8, 0..3u8).prop_map(|(owner, login)| SecretRight {
            source: SecretSource {
                uid: format!("u{owner}"),
                namespace: format!("n{owner}"),
                name: "pull".to_owned(),
            },
            credential_hash: format!("h{login}"),
        })
    }

    fn right() -> impl Strategy<Value = Right> {
        prop_oneof![
            1 => Just(Right::Preloaded),
            1 => Just(Right::NodePods),
            6 => secret().prop_map(Right::Secret),
        ]
    }

    fn policy() -> impl Strategy<Value = VerificationPolicy> {
        let list = |pattern: &str| Allowlist::new(&[pattern.to_owned()]).unwrap();
        prop_oneof![
            Just(VerificationPolicy::NeverVerify),
            Just(VerificationPolicy::NeverVerifyPreloadedImages),
            Just(VerificationPolicy::NeverVerifyAllowlistedImages(list("h.io/team/*"))),
            Just(VerificationPolicy::NeverVerifyAllowlistedImages(list("other.io/a"))),
            Just(VerificationPolicy::AlwaysVerify),
        ]
    }

    fn access(rights: &[Right]) -> Access {
        let mut access = Access::default();
        rights.iter().cloned().for_each(|right| access.add(right));
        access
    }

    fn judged(policy: &VerificationPolicy, secrets: &[SecretRight], access: &Access) -> Verdict {
        let reference = "h.io/team/a:1".parse().unwrap();
        judge(policy, Claim { given: "h.io/team/a:1", reference: &reference, secrets }, access)
    }

    fn is_given(verdict: &Verdict) -> bool {
        !matches!(verdict, Verdict::Unproven)
    }

    proptest! {
        #[test]
        fn no_right_is_lost_by_another(
            policy in policy(),
            secrets in prop::collection::vec(secret(), 0..3),
            rights in prop::collection::vec(right(), 0..6),
            more in right(),
        ) {
            let before = judged(&policy, &secrets, &access(&rights));
            let mut after = access(&rights);
            after.add(more);
            // A Secret whose login is replaced speaks for its new one only; its coordinates stay.
            let loses_a_login = secrets.iter().any(|secret| {
                let held = |access: &Access| access.kubernetes_secrets.iter().any(|known| known.credential_hash == secret.credential_hash);
                held(&access(&rights)) && !held(&after)
            });
            if is_given(&before) && !loses_a_login {
                prop_assert!(is_given(&judged(&policy, &secrets, &after)));
            }
        }

        #[test]
        fn nobody_gets_what_neither_policy_nor_record_gives(
            policy in policy(),
            secrets in prop::collection::vec(secret(), 0..3),
            rights in prop::collection::vec(right(), 0..6),
        ) {
            let access = access(&rights);
            if is_given(&judged(&policy, &secrets, &access)) {
                let by_policy = match &policy {
                    VerificationPolicy::NeverVerify => true,
                    VerificationPolicy::NeverVerifyPreloadedImages => rights.contains(&Right::Preloaded),
                    VerificationPolicy::NeverVerifyAllowlistedImages(list) => !list.prefixes.is_empty(),
                    VerificationPolicy::AlwaysVerify => false,
                };
                let by_record = rights.iter().any(|right| match right {
                    Right::Preloaded => false,
                    Right::NodePods => true,
                    Right::Secret(known) => secrets.iter().any(|secret| {
                        secret.credential_hash == known.credential_hash || secret.source == known.source
                    }),
                });
                prop_assert!(by_policy || by_record);
            }
        }

        #[test]
        fn who_pulled_an_image_gets_it_again_and_what_was_learned_is_known(
            policy in policy(),
            mine in secret(),
            rights in prop::collection::vec(right(), 0..6),
        ) {
            let mut after = access(&rights);
            match judged(&policy, std::slice::from_ref(&mine), &after) {
                Verdict::Given => {}
                Verdict::GivenAndLearned(learned) => {
                    prop_assert_eq!(&learned, &mine);
                    after.add(Right::Secret(learned));
                }
                Verdict::Unproven => after.add(Right::Secret(mine.clone())),
            }
            prop_assert_eq!(judged(&policy, &[mine], &after), Verdict::Given);
        }

        #[test]
        fn records_of_one_image_give_together_what_each_gives(
            secrets in prop::collection::vec(secret(), 0..3),
            one in prop::collection::vec(right(), 0..6),
            other in prop::collection::vec(right(), 0..6),
        ) {
            let policy = VerificationPolicy::NeverVerifyPreloadedImages;
            let (one, other) = (access(&one), access(&other));
            let union = Access::union([&one, &other]);
            prop_assert_eq!(
                is_given(&judged(&policy, &secrets, &union)),
                is_given(&judged(&policy, &secrets, &one)) || is_given(&judged(&policy, &secrets, &other))
            );
        }
    }

    #[test]
    fn a_name_that_is_reused_is_no_right() {
        let mine = |uid: &str, hash: &str| SecretRight {
            source: SecretSource { uid: uid.into(), namespace: "n".into(), name: "pull".into() },
            credential_hash: hash.into(),
        };
        let access = access(&[Right::Secret(mine("1", "a"))]);
        let policy = VerificationPolicy::default();
        assert_eq!(judged(&policy, &[mine("2", "b")], &access), Verdict::Unproven);
        let renewed = mine("1", "b");
        assert_eq!(
            judged(&policy, std::slice::from_ref(&renewed), &access),
            Verdict::GivenAndLearned(renewed)
        );
    }

    #[test]
    fn policies_are_read_as_the_kubelet_reads_them() {
        let list =
            |patterns: &[&str]| patterns.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
        let allow = Some("NeverVerifyAllowlistedImages");
        for good in ["NeverVerify", "NeverVerifyPreloadedImages", "AlwaysVerify"] {
            assert!(VerificationPolicy::new(Some(good), &[]).is_ok(), "{good}");
            let error = VerificationPolicy::new(Some(good), &list(&["h.io/a"])).unwrap_err();
            assert_eq!(error, PolicyError::ListWithoutUse);
        }
        assert_eq!(VerificationPolicy::new(None, &[]).unwrap(), VerificationPolicy::default());
        let error = VerificationPolicy::new(Some("Sometimes"), &[]).unwrap_err();
        assert!(error.to_string().contains("Sometimes"), "{error}");
        for good in ["nginx", "h.io/a/b", "h.io:5000/a", "h.io/*", "h.io/team/*"] {
            assert!(VerificationPolicy::new(allow, &list(&[good])).is_ok(), "{good}");
        }
        for bad in [
            "",
            " h.io/a",
            "h.io/a ",
            "*",
            "/*",
            "h.io/a*",
            "h.io/*/b",
            "h.*/a/*",
            "h.io/a:1",
            "h.io/A",
            "h.io:5000/a:1",
        ] {
            let error = VerificationPolicy::new(allow, &list(&[bad])).unwrap_err();
            assert!(
                error.to_string().contains("preloadedImagesVerificationAllowlist"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn listed_images_are_found_by_their_written_and_their_full_name() {
        let list = |pattern: &str| Allowlist::new(&[pattern.to_owned()]).unwrap();
        for (pattern, image, is_listed) in [
            ("nginx", "nginx:1", true),
            ("nginx", "nginxx:1", false),
            ("docker.io/library/nginx", "nginx", true),
            ("docker.io/library/*", "nginx", true),
            ("h.io/team/*", "h.io/team/a/b:2", true),
            ("h.io/team/*", "h.io/teams/a", false),
            ("h.io:5000/a", "h.io:5000/a:1", true),
            ("h.io/a", "h.io:5000/a:1", false),
        ] {
            let reference = image.parse().unwrap();
            assert_eq!(list(pattern).holds(image, &reference), is_listed, "{pattern} {image}");
        }
    }
}
