"""Every row of the failure table, and every fault that somebody has thought of: which test makes it happen.

What is measured under traffic is marked `faults`; what another test shows already is named here and not done twice.
`tests/tools/test_fault_rows.py` holds the names to the tests.
"""

from __future__ import annotations

ROWS: dict[str, tuple[str, ...]] = {
    # Container life
    "container stops, is killed, restarts": (
        "tests/supervisor/test_container_life.py::test_container_goes_and_comes_under_traffic",
        "tests/supervisor/test_session_life.py::test_container_stops_and_starts",
        "tests/supervisor/test_session_life.py::test_restart_of_a_container_that_is_its_server",
    ),
    "container pauses": (
        "tests/supervisor/test_container_life.py::test_container_pauses_under_traffic",
        "tests/agent/test_agent_in_containers.py::test_pause_is_no_loss",
    ),
    "container is renamed": ("tests/supervisor/test_session_life.py::test_renamed_container",),
    "container is removed and rebuilt": (
        "tests/supervisor/test_session_life.py::test_container_removed_and_built_anew",
        "tests/supervisor/test_session_life.py::test_new_container_takes_over_the_sockets_of_the_old_one",
        "tests/cli/test_devup_workspaces.py::test_a_rebuilt_container_has_the_same_host_port",
    ),
    "connections while it is away": (
        "tests/supervisor/test_container_life.py::"
        "test_connections_made_while_it_is_away_wait_for_ten_seconds_and_are_reset",
        "tests/supervisor/test_session_life.py::test_connection_made_while_the_container_restarts_is_served",
    ),
    "its server does not come back": (
        "tests/supervisor/test_session_life.py::test_server_that_does_not_come_back_with_its_container",
    ),
    "it stays away for long": (
        "tests/supervisor/test_session_losses.py::test_a_container_stopped_for_long_keeps_its_leases_only",
    ),
    "container's network goes while connections are open": (
        "tests/dataplane/test_trunk_on_engines.py::test_the_containers_network_goes_and_comes_back",
    ),
    # Engine life
    "engine stops, is killed, starts": ("tests/engine/test_engine_life.py::test_engine_ends_and_starts_under_traffic",),
    "engine's streams are cut": (
        "tests/engine/test_engine_streams.py::test_every_stream_of_the_engine_is_cut_under_traffic",
    ),
    "engine's socket goes and comes back": (
        "tests/engine/test_engine_streams.py::test_socket_of_the_engine_goes_and_comes_back",
    ),
    "engine hangs": (
        "tests/engine/test_engine_streams.py::test_an_engine_that_hangs_is_waited_for_and_nobody_else_notices",
        "tests/supervisor/test_session_losses.py::test_an_engine_that_hangs_is_said_to_before_it_times_out",
    ),
    "engine's events are lost": (
        "tests/engine/test_engine_streams.py::test_changes_in_lost_events_are_seen_all_the_same",
        "tests/engine/test_engine_streams.py::test_a_service_that_started_while_nobody_told_of_it",
    ),
    "machine sleeps": (
        "tests/supervisor/test_sleep_detector.py::test_jump_of_the_clock_is_told_once",
        "tests/dataplane/test_direct.py::test_after_a_sleep_of_the_machine_an_agent_that_says_nothing_is_lost_at_once",
        "tests/supervisor/test_session_losses.py::test_after_a_sleep_of_the_machine_a_watcher_that_says_nothing_is_replaced",
        "tests/engine/test_pool.py::test_a_stream_that_may_be_dead_begins_anew_after_a_sleep",
    ),
    # Supervisor life
    "supervisor is killed": (
        "tests/supervisor/test_supervisor_life.py::test_kill_9_under_traffic",
        "tests/supervisor/test_supervisor_life.py::test_kill_9_at_any_moment_of_an_attach",
        "tests/supervisor/test_supervisor_life.py::test_kill_9_with_connections_open",
        "tests/supervisor/test_supervisor_life.py::test_ends_that_a_killed_supervisor_could_not_tell",
        "tests/supervisor/test_supervisor_life.py::test_half_a_download_does_not_look_whole",
        "tests/lanes/test_leftovers.py::test_kill_9_of_the_supervisor_leaves_nothing",
        "tests/supervisor/test_session_life.py::test_container_that_went_away_with_the_supervisor",
    ),
    "supervisor dies each time": (
        "tests/control/test_crash_loops.py::test_supervisor_that_dies_each_time_is_not_started_for_ever",
    ),
    "two commands start it at once": (
        "tests/supervisor/test_supervisor_process.py::test_commands_that_start_a_supervisor_at_once_get_the_same",
    ),
    # Streams
    "agent is killed": ("tests/agent/test_agent_in_containers.py::test_agent_that_is_killed_is_replaced",),
    "agent dies each time": ("tests/agent/test_agent_dies.py::test_an_agent_that_dies_each_time_gives_way",),
    "more connections than there may be": (
        "tests/dataplane/test_descriptors.py::test_more_clients_than_descriptors",
        "tests/dataplane/test_limits.py::test_a_forward_has_a_limit_of_open_connections",
        "tests/dataplane/test_limits.py::test_a_lane_with_processes_has_a_limit_of_them",
        "tests/dataplane/test_dataplane.py::test_accepting_rests_when_descriptors_run_out",
    ),
    "thousands of connections": (
        "tests/dataplane/test_many_connections.py::test_thousands_of_connections_come_and_go",
        "tests/agent/test_agent_load.py::test_a_thousand_open_connections_all_echo",
        "tests/lanes/test_leftovers.py::test_two_hundred_connections_half_of_them_reset",
    ),
    "readers that stall": ("tests/agent/test_agent_load.py::test_stalled_reader_and_bulk_do_not_hold_up_the_others",),
    # Registry
    "registry is damaged": (
        "tests/state/test_registry_damage.py::test_registry_damaged_under_traffic_survives_a_killed_supervisor",
        "tests/state/test_registry_damage.py::test_registry_damaged_while_no_supervisor_runs_is_set_aside",
        "tests/state/test_buffered_registry.py::test_a_look_mends_the_file_from_what_is_live",
    ),
    "registry is from a newer version": ("tests/state/test_registry_damage.py::test_newer_registry_is_left_alone",),
    "disk is full": (
        "tests/state/test_disk.py::test_disk_is_full_under_traffic",
        "tests/state/test_disk.py::test_supervisor_is_killed_while_the_disk_is_full",
        "tests/state/test_disk.py::test_every_command_while_nothing_can_be_written",
        "tests/state/test_disk.py::test_supervisor_that_is_not_needed_stays_until_its_end_is_written",
    ),
    "registry or folder is read-only": (
        "tests/state/test_disk.py::test_every_command_while_nothing_can_be_written",
        "tests/state/test_disk.py::test_commands_without_a_supervisor_say_what_is_wrong",
    ),
    "reserved leases expire": (
        "tests/state/test_registry.py::test_reserved_leases_expire_after_thirty_days_and_bound_ones_never",
        "tests/state/test_state_on_disk.py::test_a_supervisor_that_starts_takes_out_what_has_expired",
    ),
    # Hostile container
    "floods of listeners": ("tests/product/test_hostile.py::test_three_thousand_listeners",),
    "flapping ports": ("tests/product/test_hostile.py::test_a_thousand_ports_a_second_open_and_close",),
    "gigabytes from what we run in it": (
        "tests/product/test_hostile.py::test_gigabytes_where_our_watcher_or_agent_speaks",
    ),
    "malformed frames": (
        "tests/product/test_hostile.py::test_gigabytes_where_our_watcher_or_agent_speaks",
        "tests/agent_protocol/test_wire_vectors.py::test_any_bytes_cut_anywhere_mean_the_same",
        "tests/lanes/test_agent_place.py::test_a_planted_agent_is_not_run",
    ),
    "lying /proc": ("tests/product/test_hostile.py::test_grep_that_lies_about_proc",),
    "relay tool is a trap": ("tests/product/test_hostile.py::test_relay_tool_that_is_a_trap",),
    "control characters and markup": (
        "tests/product/test_hostile.py::test_names_cannot_drive_a_terminal_or_leave_their_line",
    ),
    # Local attackers
    "another user on the machine": (
        "tests/supervisor/test_supervisor_process.py::test_another_user_has_no_way_in",
        "tests/supervisor/test_supervisor_process.py::test_another_user_is_refused_even_where_the_files_let_him_in",
        "tests/supervisor/test_supervisor_process.py::test_folder_that_others_could_have_prepared_is_refused",
        "tests/state/test_registry.py::test_a_folder_that_cannot_be_trusted_is_refused",
        "tests/product/test_other_users.py::test_another_user_can_read_change_and_signal_nothing",
        "tests/product/test_other_users.py::test_no_command_believes_a_folder_of_somebody_else",
        "tests/product/test_other_users.py::test_a_server_of_somebody_else_is_told_nothing",
        "tests/product/test_other_users.py::test_a_short_socket_folder_that_was_made_before_is_refused",
    ),
    # All of it at once
    "everything, for minutes": ("tests/product/test_soak.py::test_soak_loses_nothing_under_faults",),
}
