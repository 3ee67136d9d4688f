"""What only `make nightly` runs: cases of which `make test` keeps others, so that each promise has a case in the gate.

By file and test, a pattern that a case's whole id matches. A test all of whose cases are named here is in `LONG`, with what the
gate has in its place. tests/tools/test_nightly.py holds both tables to the tests that there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

ALL = ".*"


def times(gate: int, nightly: int) -> int:
    """How often the same is done in one test: more often in `make nightly`, which says so in the environment."""
    return nightly if os.environ.get("AUTOFORWARD_NIGHTLY") else gate


PLAIN = "agent(?!-asan|-copies).*"
"""Of what the agent with the sanitizers does in the gate; the plain one carries the tests with an engine."""

NIGHTLY: Mapping[str, Mapping[str, str]] = {
    "tests/agent/test_agent.py": {"test_bulk_is_whole_each_way": PLAIN},
    "tests/agent/test_agent_direct.py": {
        "test_bytes_both_ways_survive_the_switch_in_mid_stream": PLAIN,
        "test_client_without_proof_hears_nothing_and_ends_nothing": PLAIN,
        "test_stream_moves_while_its_dial_takes_time": PLAIN,
    },
    "tests/agent/test_agent_direct_ends.py": {
        "test_a_hang_up_while_the_host_reads_nothing_costs_nothing": PLAIN,
        "test_reader_that_stops_holds_up_the_writer_and_costs_no_cpu": "agent-asan-(host|server)",
    },
    "tests/dataplane/test_direct.py": {
        "test_a_server_that_ends_first_still_hears_the_client": PLAIN,
        "test_a_stalled_client_holds_up_nobody_and_loses_nothing": PLAIN,
        "test_both_ways_at_once_and_half_closed": PLAIN,
        "test_drops_of_either_end_at_random_moments": PLAIN,
    },
    "tests/dataplane/test_trunk.py": {"test_agent_that_breaks_the_trunks_protocol_gets_no_second_trunk": PLAIN},
    # Every way to an engine runs a test of the suite with the agent, and another way each; test_lanes.py has all of `local`.
    "tests/engine/test_engines.py": {
        "test_fifty_connections_at_once": "(?!tls).*",
        "test_half_close_is_kept": "(?!podman-rootless).*",
        "test_host_and_port_with_nothing_behind_is_a_reset_with_its_reason": "(?!tcp|podman$).*",
        "test_server_that_speaks_and_closes_first_ends_the_relay": "(?!docker26).*",
        "test_sixty_four_mebibytes_each_way": "(?!ssh).*",
    },
    # What is each tool's own (half-close, the server's end, a refusal's reason) runs on every lane; the rest on one of a kind.
    "tests/lanes/test_lanes.py": {
        "test_fifty_connections_at_once": "agent-arm64|openbsd-nc|traditional-nc|ncat|devtcp",
        "test_ipv6_servers": "agent-trunk|agent-arm64|openbsd-nc|ncat",
        "test_sixty_four_mebibytes_each_way": "agent-trunk|agent-arm64|openbsd-nc|ncat|busybox-nc",
    },
    # The scripts alone: test_lanes.py has every netcat through the product.
    "tests/lanes/test_shell_scripts.py": {
        "test_sixty_four_mebibytes_each_way": ALL,
        "test_relay_falls_to_the_next_address_without_losing_a_byte": "ncat|nc-traditional",
        "test_late_answer_after_half_close": "ncat|nc-traditional",
        "test_killed_supervisor_leaves_nothing": "root-ncat|root-nc-traditional|root-devtcp|dev-nc-.*|dev-socat",
        "test_watcher_makes_do_with_what_there_is": "(grep|cat)-dash|(sed|None)-bash",
        "test_watcher_sweeps_its_session_at_eof": "root-full-dash|dev-full-bash|dev-busybox-sh",
        "test_watcher_reports_changes_and_answers_and_leaves": "root-full-dash|dev-full-bash|dev-busybox-sh",
    },
    # Each value and each place that it may come from, in pairs that cover both; the decisions are tests/trust/test_widening.py's.
    "tests/trust/test_trust.py": {
        "test_no_source_alone_makes_a_host_socket_wider": (
            "bind-devcontainer.json-live|bind-.autoforward.toml-attach|bind-label-attach|localPorts-devcontainer.json-attach|"
            "localPorts-.autoforward.toml-live|forwards-devcontainer.json-live|forwards-.autoforward.toml-attach"
        ),
    },
    # Both CLIs and all kinds of workspaces, in pairs that cover both.
    "tests/cli/test_devdown_workspaces.py": {
        "test_devdown_all_ends_sessions_whose_container_was_removed": "devcontainer-rs",
        "test_devdown_all_takes_down_what_has_a_session_and_nothing_else": "node",
        "test_flag_forwards_only_leaves_the_container": "node",
        "test_no_listener_no_bound_lease_no_running_container": "devcontainer-rs-image|node-compose",
        "test_shutdown_action_none_leaves_the_container_and_ends_the_forwards": "devcontainer-rs",
        "test_container_of_the_plain_cli_is_removed": "node-image|devcontainer-rs-compose",
    },
    "tests/cli/test_devup_workspaces.py": {
        "test_a_declared_and_a_detected_port_answer_and_stdout_is_the_cli_s": (
            "devcontainer-rs-image|node-dockerfile|devcontainer-rs-compose"
        ),
        "test_a_rebuilt_container_has_the_same_host_port": "node",
        "test_app_port_is_forwarded_instead_of_published": "devcontainer-rs",
        "test_follow_streams_until_ctrl_c": "node",
        "test_up_is_fine_where_forwarding_fails": "devcontainer-rs",
        "test_the_events_of_the_start_come_before_the_result": "devcontainer-rs",
        "test_the_question_leaves_stdout_and_the_status_alone": "node",
        "test_devup_without_auto_forward_leaves_no_file_and_no_process": "devcontainer-rs",
    },
    "tests/devcontainers/test_real_shapes.py": {
        "test_app_ports_a_feature_s_ports_and_ranges_that_ignore_the_rest": "devcontainer-rs",
        "test_services_by_name_with_labels_by_host_and_port": "node",
    },
    "tests/forwards/test_rules_of_a_port.py": {
        "test_image_feature_and_file_give_the_same_attributes_with_either_cli": "node",
    },
    "tests/supervisor/test_live_configuration.py": {"test_label_of_a_cli_does_not_keep_what_left_the_file": "node"},
    "tests/supervisor/test_siblings.py": {"test_devup_for_all_services_and_devdown": "devcontainer-rs"},
    # test_hostile.py has three thousand of this lane, beside a neighbour.
    "tests/forwards/test_already_there.py": {"test_two_thousand_listeners": "socat"},
    "tests/docs/test_neovim.py": {
        "test_a_burst_is_one_message": "system",
        "test_a_program_that_is_not_there": "system",
        "test_the_list_is_whole_after_another_supervisor": "system",
        "test_a_url_that_no_browser_should_get": "system",
        "test_another_job_after_one_that_ended": "system",
        "test_control_characters_are_shown_escaped": "system",
        "test_malformed_lines_and_lines_in_pieces_are_read": "system",
        "test_on_auto_forward_decides_what_neovim_shows": "system",
    },
    "tests/lanes/test_leftovers.py": {
        "test_client_that_closes_while_its_server_ignores_eof": "socat|devtcp",
        "test_kill_9_of_the_supervisor_leaves_nothing": "nc|devtcp",
        "test_server_that_dies_takes_its_relays_along": "socat|nc",
        "test_supervisor_told_to_end_leaves_nothing": "nc|devtcp",
        "test_two_hundred_connections_half_of_them_reset": "nc|devtcp",
    },
    "tests/agent/test_agent_in_containers.py": {
        "test_agent_goes_where_there_is_a_place_for_it": "tmpfs-mount-on-tmp|read-only-with-a-volume",
        "test_read_only_root_falls_to_the_next_lane_and_says_why": "read-only",
    },
    "tests/lanes/test_agent_place.py": {
        "test_a_planted_agent_is_not_run": "file",
        "test_a_volume_in_which_others_can_exchange_it_is_no_place": "mode=0755--None|mode=0777-dev-.*|mode=0755,uid=1000-dev-.*",
    },
    "tests/engine/test_podman.py": {
        "test_same_port_after_a_restart": "rootful",
        "test_compose_project": "rootful",
        "test_shell_lanes_serve_and_end": "rootful",
    },
    "tests/dataplane/test_direct_path.py": {"test_bulk_both_ways_is_whole": "no-direct"},
    "tests/product/test_hostile.py": {
        "test_three_thousand_listeners": "agent",
        "test_a_thousand_ports_a_second_open_and_close": "socat",
        "test_gigabytes_where_our_watcher_or_agent_speaks": "agent-(head|yes).*|socat-cat.*|socat-yes-2",
        "test_grep_that_lies_about_proc": "nonsense",
        "test_relay_tool_that_is_a_trap": "prints for ever on stderr|ends at once",
    },
    "tests/product/test_hostile_files.py": {
        "test_hostile_save_is_said_once_and_the_last_good_one_stays": "half a megabyte.*|a dotted key.*",
    },
    "tests/product/test_hostile_frames.py": {
        "test_valid_frames_without_end": "EOFs.*|credit.*",
        "test_repeated_flood_of_frames_keeps_no_more_memory": ALL,
    },
    "tests/supervisor/test_container_life.py": {"test_container_goes_and_comes_under_traffic": "stop"},
    "tests/state/test_disk.py": {"test_every_command_while_nothing_can_be_written": "read-only"},
    "tests/engine/test_engine_life.py": {"test_engine_ends_and_starts_under_traffic": "live-restore"},
    "tests/state/test_registry_damage.py": {
        "test_registry_damaged_under_traffic_survives_a_killed_supervisor": "truncated|empty",
    },
}

LONG: Mapping[tuple[str, str], str] = {
    (
        "tests/lanes/test_shell_scripts.py",
        "test_sixty_four_mebibytes_each_way",
    ): "test_lanes.py: the same through the product",
    ("tests/product/test_hostile_frames.py", "test_repeated_flood_of_frames_keeps_no_more_memory"): (
        "test_valid_frames_without_end: memory of the largest snapshots comes back"
    ),
}


def is_nightly(node_id: str) -> bool:
    """`node_id` as pytest has it: file::test[case]."""
    path, _, name = node_id.partition("::")
    test, _, case = name.removesuffix("]").partition("[")
    pattern = NIGHTLY.get(path, {}).get(test)
    return pattern is not None and re.fullmatch(pattern, case) is not None
