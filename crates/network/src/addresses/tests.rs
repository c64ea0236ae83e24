use proptest::prelude::*;

use super::*;

fn ranges(texts: &[&str]) -> PodRanges {
    PodRanges::parse(texts).unwrap()
}

fn pod(number: u8) -> PodUid {
    PodUid::new(format!("pod-{number}"))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn addresses_come_in_turn_and_leave_out_three() {
    let mut addresses = Addresses::default();
    addresses.set_ranges(&ranges(&["10.244.1.0/29"]));
    let given: Vec<_> = (0..5)
        .map(|number| addresses.allocate(&pod(number), Duration::ZERO).unwrap()[0].to_string())
        .collect();
    assert_eq!(given, ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6"]);
    let error = addresses.allocate(&pod(5), Duration::ZERO).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no address left in 10.244.1.0/29: 5 pods have one; give the node a larger podCIDR, or let \
         it have at most 5 (maxPods)",
    );

    addresses.release(&pod(2), seconds(1));
    let error = addresses.allocate(&pod(5), seconds(60)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no address left in 10.244.1.0/29: 4 pods have one, 1 were let go less than 60 s ago",
    );
    let given = addresses.allocate(&pod(5), seconds(61)).unwrap();
    assert_eq!(given[0].to_string(), "10.244.1.4");
}

#[test]
fn a_pod_has_one_address_of_each_family_or_none() {
    let mut addresses = Addresses::default();
    addresses.set_ranges(&ranges(&["fd00::/64", "10.244.1.0/30"]));
    let given = addresses.allocate(&pod(0), Duration::ZERO).unwrap();
    let texts: Vec<_> = given.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["fd00::2", "10.244.1.2"]);
    addresses.allocate(&pod(1), Duration::ZERO).unwrap_err();
    assert_eq!(addresses.held().count(), 2, "half a pair was kept");
}

#[test]
fn what_was_had_before_is_kept_whatever_the_ranges_are() {
    let mut addresses = Addresses::default();
    let old = ["10.0.0.9".parse().unwrap()];
    addresses.restore(&pod(0), &old).unwrap();
    addresses.restore(&pod(0), &old).unwrap();
    let error = addresses.restore(&pod(1), &old).unwrap_err();
    assert_eq!(error.to_string(), "address 10.0.0.9 is pod pod-0's");
    assert_eq!(addresses.of(&pod(1)), None);
    assert_eq!(addresses.allocate(&pod(1), Duration::ZERO), Err(AddressError::NoRange));
    addresses.set_ranges(&ranges(&["10.244.1.0/24"]));
    assert_eq!(addresses.allocate(&pod(0), Duration::ZERO).unwrap(), old);
}

#[test]
fn an_address_that_was_let_go_twice_rests_from_the_second_time_on() {
    let mut addresses = Addresses::default();
    addresses.set_ranges(&ranges(&["10.244.1.0/30"]));
    let only: IpAddr = "10.244.1.2".parse().unwrap();
    addresses.rest(only, seconds(0));
    addresses.rest(only, seconds(30));
    addresses.allocate(&pod(0), seconds(60)).unwrap_err();
    assert_eq!(addresses.allocate(&pod(0), seconds(90)).unwrap(), [only]);
    addresses.release(&pod(0), seconds(90));
    addresses.allocate(&pod(0), seconds(149)).unwrap_err();
    assert_eq!(addresses.allocate(&pod(0), seconds(150)).unwrap(), [only]);
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u8),
    Release(u8),
    Wait(u64),
    /// The agent dies and comes back with what checkpoints and file hold.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..20).prop_map(Step::Allocate),
        3 => (0_u8..20).prop_map(Step::Release),
        2 => (0_u64..50).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #[test]
    fn no_address_is_given_twice_or_within_its_rest(
        steps in prop::collection::vec(step(), 1..200),
        prefix in 27_u8..=30,
    ) {
        let ranges = ranges(&[&format!("10.244.7.0/{prefix}"), "fd00:7::/126"]);
        let mut addresses = Addresses::default();
        addresses.set_ranges(&ranges);
        let mut now = Duration::ZERO;
        let mut held: BTreeMap<PodUid, Vec<IpAddr>> = BTreeMap::new();
        let mut let_go: HashMap<IpAddr, Duration> = HashMap::new();
        for step in steps {
            match step {
                Step::Wait(wait) => now += seconds(wait),
                Step::Allocate(number) => {
                    let Ok(given) = addresses.allocate(&pod(number), now) else { continue };
                    if let Some(before) = held.get(&pod(number)) {
                        prop_assert_eq!(before, &given, "another address for one pod");
                        continue;
                    }
                    prop_assert_eq!(given.len(), 2);
                    for address in &given {
                        prop_assert!(ranges.contains(*address));
                        prop_assert!(
                            held.values().flatten().all(|other| other != address),
                            "{address} was given twice"
                        );
                        if let Some(since) = let_go.get(address) {
                            prop_assert!(now >= *since + REST, "{address} did not rest");
                        }
                    }
                    held.insert(pod(number), given);
                }
                Step::Release(number) => {
                    let freed = addresses.release(&pod(number), now);
                    prop_assert_eq!(&freed, &held.remove(&pod(number)).unwrap_or_default());
                    let_go.extend(freed.into_iter().map(|address| (address, now)));
                }
                Step::Restart => {
                    let resting: Vec<_> = addresses.resting().collect();
                    addresses = Addresses::default();
                    addresses.set_ranges(&ranges);
                    for (since, address) in resting {
                        addresses.rest(address, since);
                    }
                    for (pod, had) in &held {
                        addresses.restore(pod, had).unwrap();
                    }
                }
            }
        }
    }

    /// A range gives all it has, however it was used before.
    #[test]
    fn a_range_is_used_up_whole(order in prop::collection::vec(0_u8..5, 0..40)) {
        let mut addresses = Addresses::default();
        addresses.set_ranges(&ranges(&["10.244.7.0/29"]));
        let mut now = Duration::ZERO;
        for number in order {
            now += REST;
            if addresses.of(&pod(number)).is_some() {
                addresses.release(&pod(number), now);
            } else {
                addresses.allocate(&pod(number), now).unwrap();
            }
        }
        now += REST;
        for number in 0..5 {
            addresses.allocate(&pod(number), now).unwrap();
        }
        addresses.allocate(&pod(5), now).unwrap_err();
    }
}
