//! What pods use, in Prometheus' text format.
//!
//! | path | names |
//! |---|---|
//! | `/metrics/resource` | the kubelet's: CPU and memory of containers |
//! | `/metrics/cadvisor` | cAdvisor's: the same, and bytes of a pod's network |
//! | `/metrics` | our own: connections, refusals and sockets of a pod |
//!
//! Sources: `pkg/kubelet/metrics/collectors/resource_metrics.go` of Kubernetes,
//! `metrics/prometheus.go` of cAdvisor. Families of which there is no sample are
//! left out, as there.

use k8s_openapi::jiff::Timestamp;
use prometheus::{
    Encoder as _, TextEncoder,
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::usage::{ContainerUsage, PodUsage, Usage};

/// The content type of what is written here.
pub(crate) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A family: name, what it means, whether it only grows.
type Family = (&'static str, &'static str, bool);

const CPU: Family = (
    "container_cpu_usage_seconds_total",
    "Cumulative cpu time consumed by the container in core-seconds",
    true,
);
const MEMORY: Family = (
    "container_memory_working_set_bytes",
    "Linear memory and tables of the container in bytes",
    false,
);
const STARTED: Family = (
    "container_start_time_seconds",
    "Start time of the container since unix epoch in seconds",
    false,
);
const POD_MEMORY: Family =
    ("pod_memory_working_set_bytes", "Linear memory and tables of the pod in bytes", false);
const ERROR: Family = (
    "resource_scrape_error",
    "1 if there was an error while getting container metrics, 0 otherwise",
    false,
);
const RECEIVED: Family =
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", true);
const SENT: Family =
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", true);
const OPENED: Family =
    ("krustlet_pod_network_connections_opened_total", "TCP connections that the pod made", true);
const ACCEPTED: Family = (
    "krustlet_pod_network_connections_accepted_total",
    "TCP connections that the pod accepted",
    true,
);
const REFUSED: Family = (
    "krustlet_pod_network_refused_total",
    "Binds, connections, datagrams and sockets that a rule or a bound of the pod refused",
    true,
);
const SOCKETS: Family = ("krustlet_pod_network_sockets", "Sockets of the pod open now", false);

/// `/metrics/resource`.
pub(crate) fn resource(usage: &Usage) -> String {
    let pods = &usage.pods;
    text([
        of_containers(STARTED, pods, started),
        of_containers(CPU, pods, cpu),
        of_containers(MEMORY, pods, memory),
        of_pods(POD_MEMORY, pods, |pod| {
            let all: u64 = pod.containers.iter().map(|container| container.memory_bytes).sum();
            Some((number(all), Some(milliseconds(pod))))
        }),
        family(ERROR, vec![sample(ERROR, &[], f64::from(u8::from(usage.unknown > 0)), None)]),
    ])
}

/// `/metrics/cadvisor`.
pub(crate) fn cadvisor(usage: &Usage) -> String {
    let pods = &usage.pods;
    let network = |family, bytes: fn(&PodUsage) -> u64| {
        of_pods(family, pods, move |pod| Some((number(bytes(pod)), Some(milliseconds(pod)))))
    };
    text([
        of_containers(STARTED, pods, started),
        of_containers(CPU, pods, cpu),
        of_containers(MEMORY, pods, memory),
        network(RECEIVED, |pod| pod.network.received_bytes),
        network(SENT, |pod| pod.network.sent_bytes),
    ])
}

/// `/metrics`.
pub(crate) fn own(usage: &Usage) -> String {
    let network = |family, count: fn(&PodUsage) -> u64| {
        of_pods(family, &usage.pods, move |pod| Some((number(count(pod)), None)))
    };
    text([
        network(OPENED, |pod| pod.network.opened),
        network(ACCEPTED, |pod| pod.network.accepted),
        refusals(&usage.pods),
        network(SOCKETS, |pod| pod.network.sockets.into()),
    ])
}

fn refusals(pods: &[PodUsage]) -> MetricFamily {
    let samples = pods.iter().flat_map(|pod| {
        pod.network.refused_by.by_rule().map(move |(rule, count)| {
            let rule = rule.to_owned();
            let labels = [("namespace", &pod.namespace), ("pod", &pod.name), ("rule", &rule)];
            sample(REFUSED, &labels, number(count), None)
        })
    });
    family(REFUSED, samples.collect())
}

/// A value, and the milliseconds since the Unix epoch at which it was so.
type Value = (f64, Option<i64>);

fn started(_: &PodUsage, container: &ContainerUsage) -> Option<Value> {
    let at = container.started_at.as_ref()?.0;
    Some((at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64(), None))
}

#[expect(clippy::unnecessary_wraps, reason = "others may have no value")]
fn cpu(pod: &PodUsage, container: &ContainerUsage) -> Option<Value> {
    Some((number(container.cpu_nanoseconds) / 1e9, Some(milliseconds(pod))))
}

#[expect(clippy::unnecessary_wraps, reason = "others may have no value")]
fn memory(pod: &PodUsage, container: &ContainerUsage) -> Option<Value> {
    Some((number(container.memory_bytes), Some(milliseconds(pod))))
}

fn milliseconds(pod: &PodUsage) -> i64 {
    pod.asked_at.0.as_millisecond()
}

/// As the format has it: above 2^53 to the nearest.
#[expect(clippy::cast_precision_loss, reason = "said above")]
fn number(count: u64) -> f64 {
    count as f64
}

fn of_containers(
    of: Family,
    pods: &[PodUsage],
    value: fn(&PodUsage, &ContainerUsage) -> Option<Value>,
) -> MetricFamily {
    let samples = pods.iter().flat_map(|pod| {
        pod.containers.iter().filter_map(move |container| {
            let (value, at) = value(pod, container)?;
            let labels =
                [("container", &container.name), ("namespace", &pod.namespace), ("pod", &pod.name)];
            Some(sample(of, &labels, value, at))
        })
    });
    family(of, samples.collect())
}

fn of_pods(
    of: Family,
    pods: &[PodUsage],
    value: impl Fn(&PodUsage) -> Option<Value>,
) -> MetricFamily {
    let samples = pods.iter().filter_map(|pod| {
        let (value, at) = value(pod)?;
        Some(sample(of, &[("namespace", &pod.namespace), ("pod", &pod.name)], value, at))
    });
    family(of, samples.collect())
}

fn family((name, help, grows): Family, samples: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(if grows { MetricType::COUNTER } else { MetricType::GAUGE });
    family.set_metric(samples);
    family
}

fn sample(
    (_, _, grows): Family,
    labels: &[(&str, &String)],
    value: f64,
    at: Option<i64>,
) -> Metric {
    let mut metric = Metric::default();
    let label = |(name, value): &(&str, &String)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).clone());
        label
    };
    metric.set_label(labels.iter().map(label).collect());
    if grows {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    if let Some(at) = at {
        metric.set_timestamp_ms(at);
    }
    metric
}

fn text<const N: usize>(families: [MetricFamily; N]) -> String {
    let families: Vec<_> =
        families.into_iter().filter(|family| !family.get_metric().is_empty()).collect();
    let mut text = Vec::new();
    // It fails on a family without a name or a sample.
    if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
        tracing::warn!(%error, "metrics could not be written");
    }
    String::from_utf8(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::usage::{NetworkUsage, RefusedUsage};

    fn usage() -> Usage {
        let time = |second| Some(Time(Timestamp::new(second, 0).unwrap()));
        let container = |name: &str| ContainerUsage {
            name: name.to_owned(),
            started_at: time(1_700_000_000),
            cpu_nanoseconds: 1_500_000_000,
            memory_bytes: 65_536,
        };
        let pod = PodUsage {
            namespace: "shop".into(),
            name: "we\"b".into(),
            uid: "u".into(),
            started_at: time(1_700_000_000),
            asked_at: Time(Timestamp::new(1_700_000_100, 0).unwrap()),
            network: NetworkUsage {
                received_bytes: 10,
                sent_bytes: 20,
                opened: 3,
                accepted: 4,
                refused: 5,
                refused_by: RefusedUsage { policy: 5, ..RefusedUsage::default() },
                sockets: 6,
            },
            containers: vec![container("a"), container("b")],
        };
        Usage { pods: vec![pod], unknown: 0 }
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|one| one == line), "{line}\n\n{text}");
    }

    #[test]
    fn the_kubelets_names_are_used_where_there_are_any() {
        let text = resource(&usage());
        has(&text, "# TYPE container_cpu_usage_seconds_total counter");
        let of =
            |name: &str| format!("{name}{{container=\"b\",namespace=\"shop\",pod=\"we\\\"b\"}}");
        has(&text, &format!("{} 1.5 1700000100000", of("container_cpu_usage_seconds_total")));
        has(&text, &format!("{} 65536 1700000100000", of("container_memory_working_set_bytes")));
        has(&text, &format!("{} 1700000000", of("container_start_time_seconds")));
        let labels = "{namespace=\"shop\",pod=\"we\\\"b\"}";
        has(&text, &format!("pod_memory_working_set_bytes{labels} 131072 1700000100000"));
        has(&text, "resource_scrape_error 0");
        let text = cadvisor(&usage());
        has(&text, &format!("container_network_receive_bytes_total{labels} 10 1700000100000"));
        has(&text, &format!("container_network_transmit_bytes_total{labels} 20 1700000100000"));
        let text = own(&usage());
        for (name, value) in
            [("connections_opened_total", 3), ("connections_accepted_total", 4), ("sockets", 6)]
        {
            has(&text, &format!("krustlet_pod_network_{name}{labels} {value}"));
        }
        for (rule, value) in [("destination", 0), ("policy", 5), ("list", 0), ("bound", 0)] {
            let labels = format!("{{namespace=\"shop\",pod=\"we\\\"b\",rule=\"{rule}\"}}");
            has(&text, &format!("krustlet_pod_network_refused_total{labels} {value}"));
        }
        assert!(!text.contains("rule=\"unknown\""), "{text}");
    }

    #[test]
    fn what_an_older_sandbox_refused_is_nobodys_but_counted() {
        let mut usage = usage();
        usage.pods[0].network.refused_by = RefusedUsage { unknown: 5, ..RefusedUsage::default() };
        let labels = "{namespace=\"shop\",pod=\"we\\\"b\",rule=\"unknown\"}";
        has(&own(&usage), &format!("krustlet_pod_network_refused_total{labels} 5"));
    }

    #[test]
    fn a_node_without_pods_says_so_and_a_silent_sandbox_is_told() {
        let none = Usage::default();
        assert_eq!((own(&none), cadvisor(&none)), (String::new(), String::new()));
        let text = resource(&Usage { unknown: 1, ..none });
        has(&text, "resource_scrape_error 1");
        assert_eq!(text.lines().count(), 3);
    }
}
