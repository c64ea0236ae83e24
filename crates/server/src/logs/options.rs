//! The query of a log request.

use jiff::{SignedDuration, Timestamp};

/// What part of a log is wanted and in what form.
///
/// Source: `PodLogOptions` in `k8s.io/api/core/v1`; validation as
/// `ValidatePodLogOptions` in `pkg/apis/core/validation/validation.go`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on with what is written later, until the run ends.
    pub follow: bool,
    /// The run before the current one.
    pub previous: bool,
    /// Put each line's time before it.
    pub timestamps: bool,
    /// Only lines written at or after this time.
    pub since: Option<Timestamp>,
    /// Only this many lines from the end. 0 begins at the end.
    pub tail: Option<u64>,
    /// End after this many bytes. At least 1.
    pub limit_bytes: Option<u64>,
    /// Only one of the two streams.
    pub stream: Option<Stream>,
}

/// Where a guest wrote a line to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A query that makes no sense; answered with 422.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid log option {name}={value:?}: {why}")]
pub struct InvalidOption {
    name: &'static str,
    value: String,
    why: &'static str,
}

impl LogOptions {
    /// Reads the pairs of a query; unknown names are ignored, as the API
    /// server adds its own.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`] names the first value that does not fit.
    pub fn parse<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
        now: Timestamp,
    ) -> Result<Self, InvalidOption> {
        let mut options = Self::default();
        let (mut seconds, mut time) = (None, None);
        for (name, value) in pairs {
            match name {
                "follow" => options.follow = boolean(value),
                "previous" => options.previous = boolean(value),
                "timestamps" => options.timestamps = boolean(value),
                "tailLines" => options.tail = Some(number("tailLines", value, 0)?),
                "limitBytes" => options.limit_bytes = Some(number("limitBytes", value, 1)?),
                "sinceSeconds" => seconds = Some(number("sinceSeconds", value, 1)?),
                "sinceTime" => {
                    time = Some(value.parse::<Timestamp>().map_err(|_| InvalidOption {
                        name: "sinceTime",
                        value: value.to_owned(),
                        why: "must be a time as in RFC 3339",
                    })?);
                }
                "stream" => options.stream = stream(value)?,
                _ => {}
            }
        }
        if let (Some(_), Some(time)) = (seconds, time) {
            return Err(InvalidOption {
                name: "sinceTime",
                value: time.to_string(),
                why: "at most one of sinceTime or sinceSeconds may be given",
            });
        }
        options.since = match seconds {
            None => time,
            Some(seconds) => {
                let back = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                // A time before all times asks for everything.
                Some(now.checked_sub(back).unwrap_or(Timestamp::MIN))
            }
        };
        Ok(options)
    }
}

/// Kubernetes reads any value but "false" and "0" as true.
///
/// Source: `Convert_Slice_string_To_bool` in
/// `apimachinery/pkg/runtime/conversion.go`.
fn boolean(value: &str) -> bool {
    !(value.eq_ignore_ascii_case("false") || value == "0")
}

fn number(name: &'static str, value: &str, least: u64) -> Result<u64, InvalidOption> {
    value.parse().ok().filter(|n| *n >= least).ok_or_else(|| InvalidOption {
        name,
        value: value.to_owned(),
        why: if least == 0 { "must be a whole number" } else { "must be a number above 0" },
    })
}

fn stream(value: &str) -> Result<Option<Stream>, InvalidOption> {
    match value {
        "" | "All" => Ok(None),
        "Stdout" => Ok(Some(Stream::Stdout)),
        "Stderr" => Ok(Some(Stream::Stderr)),
        other => Err(InvalidOption {
            name: "stream",
            value: other.to_owned(),
            why: "must be All, Stdout or Stderr",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<LogOptions, InvalidOption> {
        LogOptions::parse(pairs.iter().copied(), Timestamp::from_second(1000).unwrap())
    }

    #[test]
    fn every_flag_of_kubectl_logs_is_read() {
        let options = parse(&[
            ("follow", "true"),
            ("previous", "true"),
            ("timestamps", "1"),
            ("tailLines", "0"),
            ("limitBytes", "5"),
            ("sinceSeconds", "10"),
            ("stream", "Stderr"),
            ("pretty", "x"),
        ])
        .unwrap();
        assert_eq!(
            options,
            LogOptions {
                follow: true,
                previous: true,
                timestamps: true,
                since: Some(Timestamp::from_second(990).unwrap()),
                tail: Some(0),
                limit_bytes: Some(5),
                stream: Some(Stream::Stderr),
            }
        );
    }

    #[test]
    fn false_in_any_spelling_is_false() {
        for value in ["false", "False", "0"] {
            assert!(!parse(&[("follow", value)]).unwrap().follow);
        }
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        for (name, value) in [
            ("tailLines", "-1"),
            ("limitBytes", "0"),
            ("sinceSeconds", "0"),
            ("sinceTime", "yesterday"),
            ("stream", "stdout"),
        ] {
            let error = parse(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(parse(&[("sinceTime", "2026-11-24T00:00:00Z"), ("sinceSeconds", "3")]).is_err());
    }

    #[test]
    fn a_since_before_all_times_asks_for_everything() {
        let options = parse(&[("sinceSeconds", "9223372036854775807")]).unwrap();
        assert_eq!(options.since, Some(Timestamp::MIN));
    }
}
