//! Real zygotes, real sandboxes, real guests.
//!
//! This program is both the test and the zygote: it starts itself again as
//! `sandbox zygote`. So it has a `main` of its own, which understands what
//! `cargo test` says to test programs: filters, `--exact`, `--skip`, `--list`.
//!
//! Needs root, as the node does: without, each test fails and says so.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy sees no tests in a program with a main of its own"
)]

mod code;
mod cpu;
mod filters;
mod fixture;
mod guests;
mod host_ports;
mod http;
mod life;
mod locks;
mod p3;
mod place;
mod policy;
mod preview1;
mod sockets;
mod tls;
mod visits;

use std::{
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

/// A test: its name and itself.
type Test = (&'static str, fn());

/// Lists functions as tests.
macro_rules! tests {
    ($($module:ident: $($name:ident),+;)+) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn()),)+)+]
    };
}

const TESTS: &[Test] = tests! {
    cpu:
        a_container_over_its_cpu_limit_waits_and_others_do_not,
        another_limit_holds_for_a_guest_that_runs,
        an_exec_is_within_its_containers_cpu_limit,
        what_a_server_does_without_its_guest_counts_too,
        requests_are_within_their_containers_cpu_limit;
    filters:
        whom_policies_refuse_does_not_connect,
        whom_policies_refuse_takes_no_place,
        a_filter_is_of_the_pods_port_wherever_that_is,
        listeners_of_all_guests_are_lent,
        a_port_is_listened_on_again_at_once_though_it_is_lent;
    guests:
        a_module_runs_and_its_output_becomes_log_lines,
        a_command_component_runs_with_arguments_and_environment,
        an_exit_code_is_the_programs_own,
        a_trap_is_134_and_tells_where,
        a_guest_that_exceeds_its_memory_limit_is_oom_killed,
        a_guest_that_copes_with_its_memory_limit_is_not,
        what_may_wait_in_bodies_is_memory_of_the_container,
        fields_of_http_are_memory_of_the_container,
        one_call_of_a_component_is_no_large_one,
        a_module_draws_as_many_random_bytes_as_it_has_room_for,
        objects_that_nobody_has_any_more_are_not_counted,
        a_module_is_entered_where_its_image_says,
        a_library_is_made_ready_before_it_is_entered,
        a_missing_import_is_named_before_the_start,
        a_missing_interface_is_named_with_what_there_is,
        an_endless_name_does_not_end_the_connection,
        a_module_without_an_entry_is_refused,
        directories_are_where_the_spec_says_and_as_writable,
        a_working_directory_reaches_both_kinds_of_guests,
        two_sandboxes_draw_different_random_bytes,
        a_full_log_goes_on_in_the_next_file,
        an_exec_is_a_program_beside_the_container,
        an_exec_ends_with_its_container,
        an_exec_ends_with_those_who_read_it,
        statistics_tell_memory_and_processor_time;
    host_ports:
        a_guest_hears_the_nodes_port_and_answers_from_it,
        who_comes_by_the_nodes_port_is_let_in_by_the_containers,
        a_pod_that_shares_an_address_hears_its_own_port_and_the_nodes,
        a_pod_of_the_nodes_network_hears_its_port_at_all_addresses;
    http:
        an_idle_server_has_few_threads_and_descriptors,
        connections_are_served_by_as_many_threads_as_a_container_may_use_cores,
        requests_are_answered_each_by_its_own_instance,
        an_instance_answers_as_many_requests_as_it_may,
        an_instance_that_is_not_asked_ends,
        requests_that_wait_share_an_instance_of_version_3,
        an_instance_that_computes_keeps_nobody_waiting,
        containers_of_one_program_have_their_own_bounds,
        who_sends_what_nobody_wants_hears_why,
        answers_that_nobody_takes_are_bounded,
        clients_that_ask_nothing_make_room_for_others,
        bodies_of_requests_that_wait_are_bounded,
        a_request_that_traps_fails_alone_and_is_logged,
        a_request_that_takes_too_long_is_cut_off,
        a_request_that_waits_too_long_for_its_turn_is_turned_away,
        memory_is_counted_over_all_requests,
        a_stopped_server_finishes_what_it_has_begun,
        a_server_that_does_not_finish_in_time_is_killed,
        a_killed_server_computes_no_more,
        so_many_requests_wait_and_no_more,
        a_body_comes_back_as_it_goes_in,
        trailers_come_and_go_with_their_bodies,
        a_handler_sees_the_request_and_may_go_on_after_its_answer,
        a_handler_calls_other_servers_by_its_pods_network;
    life:
        a_guest_that_computes_is_stopped_at_once,
        a_guest_that_waits_is_stopped_at_once,
        without_grace_a_guest_is_killed,
        a_sandbox_can_host_many_pods,
        a_list_longer_than_a_packet_arrives,
        guests_of_one_sandbox_share_its_thread,
        a_sandbox_outlives_its_agent_and_tells_the_next,
        exits_are_in_the_status_file_and_the_journal,
        a_verb_of_a_newer_version_is_refused_by_name,
        wrong_descriptors_are_refused,
        agents_are_heard_where_a_guest_has_taken_all_descriptors,
        a_killed_sandbox_is_reaped_and_told,
        an_agent_may_leave_as_a_sandbox_ends,
        a_zygote_that_retires_ends_with_its_last_sandbox,
        a_panic_of_the_host_ends_the_process_not_the_report;
    locks:
        a_sandbox_has_its_user_and_no_rights,
        a_sandbox_sees_an_empty_root,
        what_only_exploits_call_kills,
        what_no_sandbox_needs_is_refused,
        a_handed_directory_has_no_way_up,
        nothing_of_the_zygote_stays_open,
        a_sandbox_may_be_neither_root_nor_the_zygotes_user,
        an_ordinary_user_has_the_empty_room_too;
    p3:
        a_command_sees_its_arguments_environment_and_directories,
        a_command_ends_as_it_says,
        a_command_is_stopped_as_any_other,
        calls_that_wait_and_streams_have_a_bound,
        much_output_is_in_the_log_whole,
        a_command_runs_beside_its_container,
        a_version_that_is_not_there_is_named,
        servers_and_clients_are_at_the_pods_addresses,
        a_client_comes_from_the_pods_address,
        destinations_limits_and_pods_without_network_are_refused,
        hundreds_of_connections_of_one_guest_are_served_at_once,
        much_goes_through_whole_and_waits_for_who_reads,
        connections_joined_by_a_guest_do_not_keep_its_thread,
        datagrams_of_any_length_come_back,
        options_are_kept_and_calls_out_of_order_are_refused,
        names_are_the_pods;
    sockets:
        a_server_answers_at_its_pods_address_and_nowhere_else,
        a_server_answers_over_ipv6,
        localhost_is_the_pods_own,
        a_pod_of_the_nodes_network_has_its_loopback,
        a_pod_of_the_nodes_network_calls_from_where_the_way_begins,
        an_address_of_another_is_not_bound,
        a_port_is_taken_once,
        a_connection_comes_from_the_pods_address,
        refused_destinations_are_refused_and_counted,
        a_pod_without_network_has_no_socket,
        datagrams_go_to_and_from_the_pods_address,
        who_does_not_read_is_not_written_to,
        much_is_carried_whole,
        hundreds_of_connections_are_served_at_once,
        a_server_has_all_the_connections_that_its_pod_may_have,
        there_are_no_more_sockets_than_allowed,
        all_sockets_of_a_pod_share_its_bandwidth,
        what_a_guest_wrote_arrives_after_its_end,
        the_end_of_a_guest_waits_for_what_it_wrote,
        a_handed_socket_serves_while_the_guest_listens,
        an_http_guest_listens_on_all_of_its_pods_addresses,
        where_an_http_guest_is_listened_for_counts_as_no_socket,
        a_port_of_an_http_guest_that_is_in_use_is_named,
        pods_are_led_to_services_by_the_one_directory_they_were_handed,
        a_guest_asks_a_service_for_a_page_by_its_name;
    policy:
        only_whom_a_policy_lets_in_is_heard,
        a_policy_lets_guests_out_and_answers_in,
        a_policy_that_is_not_known_stays_what_it_was,
        guests_go_only_where_their_pods_list_says;
    preview1:
        a_module_serves_the_ports_of_its_container,
        a_server_of_go_serves_on_its_listener,
        a_module_that_cannot_accept_gets_no_listener,
        a_module_in_a_pod_without_network_runs_as_ever,
        socket_calls_on_what_is_no_socket_fail_by_name,
        files_and_sockets_do_not_share_numbers,
        a_module_has_so_many_files_open_and_no_more,
        what_is_said_to_be_readable_is,
        a_connection_that_was_broken_off_is_told_as_such,
        what_is_looked_at_is_still_there,
        who_waits_for_all_gets_all,
        one_direction_ends_and_the_other_goes_on,
        a_module_is_told_which_listener_is_which,
        lists_are_no_longer_than_linux_takes;
    tls:
        a_guest_believes_whom_its_container_names,
        servers_and_execs_believe_whom_their_container_names;
    visits:
        the_agent_reaches_what_a_pod_keeps_to_itself,
        a_visit_counts_as_a_socket_and_ends_with_either_side,
        the_agent_reaches_the_loopback_that_a_pod_shares;
};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().is_some_and(|arg| arg == "zygote") {
        return krustlet_sandbox::zygote_main();
    }
    let (mut filters, mut skipped) = (Vec::new(), Vec::new());
    let (mut exact, mut list) = (false, false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--exact" => exact = true,
            "--list" => list = true,
            "--skip" => skipped.extend(args.next()),
            "--format" | "--test-threads" | "--color" => drop(args.next()),
            // What else there is changes only how it looks.
            option if option.starts_with('-') => {}
            filter => filters.push(filter.to_owned()),
        }
    }
    let matches = |name: &str, filter: &String| {
        if exact { name == filter } else { name.contains(filter.as_str()) }
    };
    let chosen: Vec<_> = TESTS
        .iter()
        .filter(|(name, _)| {
            filters.is_empty() || filters.iter().any(|filter| matches(name, filter))
        })
        .filter(|(name, _)| !skipped.iter().any(|filter| matches(name, filter)))
        .collect();
    if list {
        for (name, _) in chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    place::enter();
    let mut failed = Vec::new();
    for (name, test) in &chosen {
        let passed = panic::catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(name);
        }
    }
    println!("\n{} passed; {} failed {failed:?}", chosen.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
