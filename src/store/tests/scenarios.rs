//! The store's rules, each as a script. Section numbers are those of the original's behaviour that
//! the README's compatibility table refers to; a test named `bNN_…` is about weakness NN of the
//! original, which must not come back.

use super::scenario::scenario;

// ---- create, seal, abort ------------------------------------------------------------------------

#[test]
fn an_id_can_be_created_once_in_any_state() {
    scenario(
        "store 1000
         a create X 10   -> created
         b create X 10   -> exists X
         a create X 10   -> exists X
         a seal X        -> done
         b create X 20   -> exists X
         a usage         -> used 10 pinned 10 objects 1",
    );
}

#[test]
fn a_failed_create_leaves_no_trace_of_the_id() {
    scenario(
        "store 1000
         a create X 2000  -> full: 2000 asked, 0 used, 0 pinned
         a state X        -> absent
         a create X 1000  -> created",
    );
}

#[test]
fn objects_may_be_empty_and_cost_nothing() {
    scenario(
        "store 1000
         a create X 0      -> created
         a create Y 0+5    -> created
         a seal X          -> done
         a seal Y          -> done
         b get X,Y         -> got X,Y
         a usage           -> used 5 pinned 5 objects 2",
    );
}

#[test]
fn an_object_of_exactly_the_capacity_fits_also_after_eviction() {
    scenario(
        "store 10000
         a put A:4000,B:3000  -> done
         a create X 9000+1000 -> created
         a state A,B,X        -> absent, absent, created",
    );
}

#[test]
fn seal_makes_the_object_visible_and_keeps_the_creators_hold() {
    scenario(
        "store 1000
         a create X 10  -> created
         b get X timeout=0 -> got -
         a seal X       -> done
         b get X        -> got X
         b release X    -> done
         a list         -> X 10+0 refs 1 sealed after 0
         a release X    -> done
         a list         -> X 10+0 refs 0 sealed after 0",
    );
}

#[test]
fn seal_with_release_gives_the_hold_up_in_one_message() {
    scenario(
        "store 1000
         a create X 10     -> created
         a seal X release  -> done
         a release X       -> not held X
         a evict 1         -> evicted 10 in 1",
    );
}

#[test]
fn only_the_creator_may_seal_or_abort_and_only_once() {
    scenario(
        "store 1000
         a seal X       -> not found X
         a abort X      -> not found X
         a create X 10  -> created
         b seal X       -> not creator X
         b abort X      -> not creator X
         a seal X       -> done
         a seal X       -> already sealed X
         a abort X      -> already sealed X
         b seal X       -> already sealed X",
    );
}

#[test]
fn abort_frees_the_memory_and_the_name_at_once() {
    scenario(
        "store 1000
         a subscribe      -> done; stream
         a create X 1000  -> created
         a abort X        -> done
         a state X        -> absent
         a create X 999   -> created
         a seal X         -> done
         a events         -> snapshot end, sealed X 999+0",
    );
}

#[test]
fn a_waiting_get_survives_an_abort_and_is_served_by_the_next_creator() {
    scenario(
        "store 1000
         a create X 10  -> created
         b get X        ->
         a abort X      -> done
         c create X 20  -> created
         c seal X       -> b: got X; done",
    );
}

#[test]
fn put_is_create_write_seal_and_release_in_one() {
    scenario(
        "store 1000
         b get X         ->
         a put X:10+2    -> b: got X; done
         a put X:10      -> exists X
         a release X     -> not held X
         a list          -> X 10+2 refs 1 sealed after 0
         a put Y:2000    -> full: 2000 asked, 12 used, 12 pinned",
    );
}

#[test]
fn a_put_whose_bytes_cannot_be_written_has_never_been_there() {
    scenario(
        "store 100
         s subscribe            -> done; stream
         s events               -> snapshot end
         a put X:10             -> done
         b get Y or-abandoned   ->
         c get Y                ->
         d wait X,Y,Z count=2   ->
         memory lost            ->
         a put Y:10+2           -> b: abandoned Y; memory lost
         a put Y:10,E:0,Z:80    -> memory lost
         a state Y,Z,E          -> absent, absent, absent
         a usage                -> used 10 pinned 0 objects 1
         a put E:0              -> done
         a create Y 10          -> created
         a abort Y              -> done
         memory back            ->
         a put Y:10             -> c: got Y; d: ready X,Y,-; done
         s events               -> sealed X 10+0, sealed E 0+0, sealed Y 10+0",
    );
}

#[test]
fn who_waits_for_room_behind_a_put_that_fails_gets_it() {
    scenario(
        "store 100
         a create A 100              -> created
         b put B:100 wait=1000    ->
         c put C:60,D:40 wait=1000 ->
         d create E 100 wait=1000 ->
         memory lost                 ->
         a abort A                   -> done; b: memory lost; c: memory lost; d: created
         a usage                     -> used 100 pinned 100 objects 1
         d dies                      ->",
    );
}

#[test]
fn a_batch_is_put_all_or_nothing() {
    scenario(
        "store 100
         a put X:10                 -> done
         a put Y:10,X:10            -> exists X
         a put Y:10,Z:10,Y:10       -> exists Y
         a put Y:60,Z:60            -> full: 120 asked, 10 used, 0 pinned
         a state X,Y,Z              -> sealed, absent, absent
         b get Y,Z                  ->
         a put Y:20,Z:30            -> b: got Y,Z; done
         a usage                    -> used 60 pinned 50 objects 3",
    );
}

#[test]
fn a_batch_that_is_refused_evicts_nothing() {
    scenario(
        "store 100
         a put A:10,B:10,C:40     -> done
         b get C                  -> got C
         a put X:30,Y:40          -> full: 70 asked, 60 used, 40 pinned
         a state A,B              -> sealed, sealed
         a put X:30,Y:30          -> done
         a state A,B              -> absent, absent",
    );
}

// ---- get and wait -------------------------------------------------------------------------------

#[test]
fn get_with_timeout_zero_answers_at_once_with_what_is_there() {
    scenario(
        "store 1000
         a put X:10              -> done
         a create Y 10           -> created
         b get Y,X,Z timeout=0   -> got -,X,-
         b get Z timeout=0       -> got -",
    );
}

#[test]
fn get_with_a_timeout_returns_partial_results_in_request_order() {
    scenario(
        "store 1000
         b get X,Y,Z timeout=100  ->
         a put Z:10               ->done
         tick 99                  ->
         a put X:10               ->done
         tick 1                   -> b: got X,-,Z
         tick 1000                ->",
    );
}

#[test]
fn get_without_a_timeout_waits_until_everything_is_there() {
    scenario(
        "store 1000
         b get X,Y     ->
         tick 9999999  ->
         a put Y:1     -> done
         a put X:1     -> b: got X,Y; done",
    );
}

#[test]
fn what_a_waiting_get_has_got_stays_pinned() {
    scenario(
        "store 100
         a put X:60                -> done
         b get X,Y timeout=10      ->
         a put Z:60                -> full: 60 asked, 60 used, 60 pinned
         a delete X                -> in use
         tick 10                   -> b: got X,-
         a state X                 -> sealed
         b release X               -> done
         a state X                 -> absent",
    );
}

#[test]
fn what_a_waiting_get_has_got_cannot_be_given_back_yet() {
    scenario(
        "store 100
         a put X:60                -> done
         b get X,Y                 ->
         b release X               -> not held X
         a delete X                -> in use
         a put Y:1                 -> b: got X,Y; done
         b release X               -> done
         a state X                 -> absent",
    );
}

#[test]
fn several_gets_of_one_client_wait_at_the_same_time() {
    scenario(
        "store 1000
         b get X            ->
         b get Y timeout=50 ->
         b state X          -> absent
         a put Y:1          -> b: got Y; done
         a put X:1          -> b: got X; done",
    );
}

#[test]
fn getters_are_answered_in_the_order_they_came_and_before_the_sealer() {
    scenario(
        "store 1000
         c get X   ->
         b get X   ->
         a create X 1 -> created
         a seal X  -> c: got X; b: got X; done",
    );
}

#[test]
fn wait_ends_when_enough_of_the_ids_were_seen_and_holds_nothing() {
    scenario(
        "store 1000
         b wait X,Y,Z count=2            ->
         a put Y:1                       -> done
         a put Z:1                       -> b: ready -,Y,Z; done
         b wait X,Y,Y count=1            -> ready -,Y,Y
         b wait X,Y count=2 timeout=0    -> ready -,Y
         b wait X,Y count=2 timeout=5    ->
         tick 5                          -> b: ready -,Y
         b wait X,X count=2 timeout=5    ->
         a put X:1                       -> b: ready X,X; done
         a evict 3                       -> evicted 3 in 3",
    );
}

#[test]
fn a_cancelled_request_is_answered_and_forgotten() {
    scenario(
        "store 100
         a put X:60                 -> done
         b get X,Y                  ->
         b cancel                   -> got X,-; done
         b cancel 1                 -> done
         a create Y 90 wait=forever ->
         a cancel                   -> the request was cancelled; done
         b release X                -> done
         a usage                    -> used 60 pinned 0 objects 1",
    );
}

#[test]
fn a_get_can_ask_to_be_told_when_the_creator_gives_up() {
    scenario(
        "store 1000
         a create X 1            -> created
         a put Y:1               -> done
         b get X,Y or-abandoned  ->
         c get X                 ->
         a abort X               -> b: abandoned X; done
         a usage                 -> used 1 pinned 0 objects 1
         a create X 1            -> created
         b get X or-abandoned    ->
         a dies                  -> b: abandoned X
         d put X:1               -> c: got X; done",
    );
}

// ---- release, disconnect ------------------------------------------------------------------------

#[test]
fn holds_are_counted_but_a_client_is_one_holder() {
    scenario(
        "store 1000
         a put X:10         -> done
         b get X,X          -> got X,X
         b get X            -> got X
         c get X            -> got X
         a list             -> X 10+0 refs 2 sealed after 0
         b release X times=2 -> done
         a list             -> X 10+0 refs 2 sealed after 0
         b release X times=2 -> not held X
         b release X        -> done
         b release X        -> not held X
         a list             -> X 10+0 refs 1 sealed after 0",
    );
}

#[test]
fn a_release_that_is_refused_changes_nothing() {
    scenario(
        "store 1000
         a put X:10,Y:10  -> done
         b get X,Y        -> got X,Y
         b release X,Z    -> not found Z
         b release X,X    -> not held X
         b release X,Y    -> done
         b release Q      -> not found Q",
    );
}

#[test]
fn a_client_that_dies_loses_its_holds_waits_and_unsealed_objects() {
    scenario(
        "store 100
         a create X 50   -> created
         a put Y:50      -> done
         a get Y         -> got Y
         a get Z         ->
         a get Q         ->
         b get X timeout=10 ->
         a dies          ->
         b state X,Y     -> absent, sealed
         b usage         -> used 50 pinned 0 objects 1
         tick 10         -> b: got -
         c put Z:1,Q:1   -> done",
    );
}

#[test]
fn goodbye_is_answered_before_the_connection_ends() {
    scenario(
        "store 100
         a goodbye  -> done; hang up",
    );
}

// ---- state, delete ------------------------------------------------------------------------------

#[test]
fn delete_answers_for_each_id() {
    scenario(
        "store 1000
         a put X:1,Y:1        -> done
         a create Z 1         -> created
         b get Y              -> got Y
         a delete Q,Z,Y,X,Q   -> not found, not sealed, in use, deleted, not found
         a list               -> Y 1+0 refs 1 sealed after 0 delete pending, Z 1+0 refs 1 created delete pending",
    );
}

#[test]
fn a_deferred_delete_happens_at_the_last_release() {
    scenario(
        "store 1000
         s subscribe   -> done; stream
         a put X:1     -> done
         b get X       -> got X
         c get X       -> got X
         a delete X    -> in use
         a create X 1  -> exists X
         b release X   -> done
         a state X     -> sealed
         c dies        ->
         a state X     -> absent
         a create X 1  -> created
         s events      -> snapshot end, sealed X 1+0, deleted X",
    );
}

#[test]
fn an_unsealed_object_with_a_deferred_delete_can_still_be_sealed_and_read() {
    scenario(
        "store 1000
         b get X           ->
         a create X 1      -> created
         a delete X        -> not sealed
         a seal X release  -> b: got X; done
         a state X         -> sealed
         b release X       -> done
         a state X         -> absent",
    );
}

#[test]
fn deleting_an_awaited_id_does_not_disturb_the_waiter() {
    scenario(
        "store 1000
         b get X     ->
         a delete X  -> not found
         a put X:1   -> b: got X; done",
    );
}

// ---- eviction -----------------------------------------------------------------------------------

#[test]
fn evict_takes_whole_objects_oldest_release_first() {
    scenario(
        "store 10000
         s subscribe                  -> done; stream
         a put A:1000                 -> done
         a put B:998                  -> done
         a put C:997                  -> done
         a evict 0                    -> evicted 0 in 0
         a evict 1                    -> evicted 1000 in 1
         a evict 999                  -> evicted 1995 in 2
         a evict 1                    -> evicted 0 in 0
         s events                     -> snapshot end, sealed A 1000+0, sealed B 998+0, sealed C 997+0, evicted A, evicted B, evicted C",
    );
}

#[test]
fn evict_takes_empty_objects_on_its_way() {
    scenario(
        "store 1000
         a put A:0,B:0,C:0,D:5,E:0  -> done
         a evict 1                  -> evicted 5 in 4
         a state A,B,C,D,E          -> absent, absent, absent, absent, sealed",
    );
}

#[test]
fn objects_in_use_are_never_evicted() {
    scenario(
        "store 1000
         a put A:10,B:10   -> done
         b get A           -> got A
         a create C 10     -> created
         a evict 1000      -> evicted 10 in 1
         a state A,B,C     -> sealed, absent, created",
    );
}

#[test]
fn lru_order_is_by_last_release_and_get_alone_does_not_change_it() {
    scenario(
        "store 1000
         a put A:10,B:10,C:10  -> done
         b get A               -> got A
         b release A           -> done
         b get B               -> got B
         b get B               -> got B
         b release B times=2   -> done
         a evict 1             -> evicted 10 in 1
         a state A,B,C         -> sealed, sealed, absent
         a evict 1             -> evicted 10 in 1
         a state A,B           -> absent, sealed",
    );
}

#[test]
fn refresh_makes_idle_objects_the_most_recent_in_the_order_named() {
    scenario(
        "store 1000
         a put A:1,B:1,C:1,D:1   -> done
         b get C                 -> got C
         b refresh A,B,C,Q       -> refreshed 2
         b release C             -> done
         a evict 1               -> evicted 1 in 1
         a state A,B,C,D         -> sealed, sealed, sealed, absent
         a evict 1               -> evicted 1 in 1
         a evict 1               -> evicted 1 in 1
         a state A,B,C           -> absent, absent, sealed",
    );
}

#[test]
fn a_create_evicts_what_it_needs_and_no_more() {
    scenario(
        "store 1000
         s subscribe           -> done; stream
         a put A:300,B:300,C:300 -> done
         a create X 150        -> created
         a state A,B,C         -> absent, sealed, sealed
         s events              -> snapshot end, sealed A 300+0, sealed B 300+0, sealed C 300+0, evicted A",
    );
}

#[test]
fn victims_that_do_not_help_are_spared() {
    // 1024 bytes of memory, cut into A B C D; only B and C together make a run of 512.
    scenario(
        "store 1024 segment=1024
         a put A:256                -> done
         a put B:256,C:256,D:256    -> done
         b get A                    -> got A
         a refresh D                -> refreshed 1
         c get D                    -> got D
         c release D                -> done
         a create X 512             -> created
         a state A,B,C,D            -> sealed, absent, absent, sealed",
    );
    scenario(
        "store 1024 segment=1024
         a put A:256,B:256,C:256,D:256   -> done
         b get B                         -> got B
         a create X 512                  -> created
         a state A,B,C,D                 -> sealed, sealed, absent, absent",
    );
}

#[test]
fn a_batch_that_fits_into_an_empty_store_is_not_stopped_by_idle_objects() {
    scenario(
        "store 256 segment=256
         a put A:64,B:64,C:128  -> done
         a delete B             -> deleted
         a put X:64,Y:192       -> done
         a state A,C,X,Y        -> absent, absent, sealed, sealed",
    );
}

#[test]
fn create_that_keeps_others_evicts_nothing() {
    scenario(
        "store 1000
         a put A:600               -> done
         a create X 500 keep       -> full: 500 asked, 600 used, 0 pinned
         a create X 400 keep       -> created
         a state A                 -> sealed",
    );
}

#[test]
fn the_number_of_objects_is_bounded_like_the_bytes() {
    scenario(
        "store 1000 objects=2
         a put A:0               -> done
         a create B 0            -> created
         a put C:0               -> done
         a state A,B,C           -> absent, created, sealed
         a create D 0 keep       -> full: 0 asked, 0 used, 0 pinned
         b get C                 -> got C
         a create D 0            -> full: 0 asked, 0 used, 0 pinned
         a put D:0,E:0,F:0       -> full: 0 asked, 0 used, 0 pinned",
    );
}

#[test]
fn a_segmented_order_protects_what_was_used_twice() {
    scenario(
        "store 1000 policy=slru
         a put Z:50,A:10    -> done
         b get A            -> got A
         b release A        -> done
         a put B:10         -> done
         a evict 1          -> evicted 50 in 1
         a evict 1          -> evicted 10 in 1
         a state A,B        -> sealed, absent",
    );
}

// ---- waiting for room ---------------------------------------------------------------------------

#[test]
fn b23_a_create_may_wait_for_room() {
    scenario(
        "store 100
         a put X:80                  -> done
         b get X                     -> got X
         a create Y 50               -> full: 50 asked, 80 used, 80 pinned
         a create Y 50 wait=200      ->
         tick 100                    ->
         b release X                 -> done; a: created
         a state X,Y                 -> absent, created",
    );
}

#[test]
fn a_create_that_waits_in_vain_is_refused_at_its_deadline() {
    scenario(
        "store 100
         a create X 80            -> created
         b create Y 50 wait=10    ->
         tick 10                  -> b: full: 50 asked, 80 used, 80 pinned
         a abort X                -> done
         b state Y                -> absent",
    );
}

#[test]
fn a_create_that_can_never_fit_does_not_wait() {
    scenario(
        "store 100
         a create X 101 wait=forever -> full: 101 asked, 0 used, 0 pinned
         a put X:60,Y:60 wait=forever -> full: 120 asked, 0 used, 0 pinned",
    );
}

#[test]
fn a_batch_that_can_never_fit_after_rounding_does_not_wait() {
    scenario(
        "store 100 segment=128
         a put X:1,Y:1,Z:1 wait=forever -> full: 3 asked, 0 used, 0 pinned
         a put X:1,Y:64 wait=forever    -> done",
    );
}

#[test]
fn waiting_creates_are_served_first_come_first_served() {
    scenario(
        "store 100
         a create A 100             -> created
         b create B 90 wait=forever ->
         c create C 10 wait=50      ->
         d put D:10 wait=forever    ->
         a abort A                  -> done; b: created; c: created
         tick 50                    ->
         c abort C                  -> done; d: done",
    );
}

#[test]
fn a_create_that_does_not_wait_may_pass_those_that_do() {
    scenario(
        "store 100
         a create A 60              -> created
         b create B 90 wait=30      ->
         c create C 10              -> created
         d create D 10 wait=forever ->
         tick 30                    -> b: full: 90 asked, 70 used, 70 pinned; d: created",
    );
}

#[test]
fn a_waiting_create_whose_name_was_taken_meanwhile_is_refused() {
    scenario(
        "store 100
         a create A 100           -> created
         b create X 10 wait=forever ->
         c create X 20 wait=forever ->
         a abort A                -> done; b: created; c: exists X",
    );
}

#[test]
fn a_waiting_create_whose_name_is_taken_does_not_keep_others_waiting() {
    scenario(
        "store 100
         a create A 100             -> created
         b create X 90 wait=forever ->
         c create Y 0 wait=forever  ->
         d create X 0               -> created; b: exists X; c: created",
    );
}

#[test]
fn a_quota_that_comes_while_a_create_waits_holds_for_it() {
    scenario(
        "store 100
         b create B 90               -> created
         a create A 50 wait=forever  ->
         a quota 10                  -> done; an object of 50 bytes does not fit into this client's quota of 10 bytes, of which 0 are used
         b abort B                   -> done",
    );
}

#[test]
fn a_dead_client_leaves_the_queue() {
    scenario(
        "store 100
         a create A 100             -> created
         b create B 100 wait=forever ->
         c put C:50 wait=forever    ->
         b dies                     ->
         a dies                     -> c: done
         c state B,C                -> absent, sealed",
    );
}

// ---- quotas -------------------------------------------------------------------------------------

#[test]
fn a_quota_limits_its_client_and_evicts_its_own_objects() {
    scenario(
        "store 10000000
         a quota 5242880         -> done
         a put A:3145728         -> done
         a put B:3145728         -> done
         a state A,B             -> absent, sealed
         a put C:7340032         -> an object of 7340032 bytes does not fit into this client's quota of 5242880 bytes, of which 3145728 are used
         a put C:4194304         -> done
         a state B,C             -> absent, sealed",
    );
}

#[test]
fn a_quota_evicts_no_more_than_it_needs() {
    scenario(
        "store 1000
         a quota 100         -> done
         a put A:10          -> done
         b create Z 10       -> created
         a put B:60,C:0      -> done
         a put D:90          -> done
         a state A,B,C,D     -> sealed, absent, sealed, sealed",
    );
}

#[test]
fn quotas_take_seventy_per_cent_at_most_and_are_set_once() {
    scenario(
        "store 10000000
         a quota 8388608  -> a quota of 8388608 bytes cannot be given, at most 7000000 bytes are left
         a quota 5242880  -> done
         a quota 1        -> this client has a quota of 5242880 bytes already
         b quota 3145728  -> a quota of 3145728 bytes cannot be given, at most 1757120 bytes are left
         b quota 1048576  -> done
         b dies           ->
         c quota 1757120  -> done",
    );
}

#[test]
fn a_quota_protects_in_both_directions() {
    scenario(
        "store 10000000
         a quota 5242880              -> done
         a put A:3145728              -> done
         b put B:3145728              -> done
         c put C:3145728,D:3145728    -> done
         a state A,B                  -> sealed, absent
         a put E:3145728              -> done
         a state A,C,D,E              -> absent, sealed, sealed, sealed",
    );
}

#[test]
fn objects_in_use_leave_the_quota_when_it_needs_room() {
    scenario(
        "store 10000000
         a quota 5242880        -> done
         a create A 3145728     -> created
         a create B 3145728     -> created
         a seal A               -> done
         a seal B               -> done
         a usage                -> used 6291456 pinned 6291456 objects 2
         a release A,B          -> done
         b put C:3145728        -> done
         b put D:3145728        -> done
         a state A,B            -> absent, sealed",
    );
}

#[test]
fn a_quota_of_zero_allows_empty_objects_only() {
    scenario(
        "store 1000
         a quota 0       -> done
         a create X 1    -> an object of 1 bytes does not fit into this client's quota of 0 bytes, of which 0 are used
         a create X 0    -> created",
    );
}

#[test]
fn reading_is_not_charged() {
    scenario(
        "store 1000
         a quota 10   -> done
         b put X:500  -> done
         a get X      -> got X
         a put Y:10   -> done",
    );
}

#[test]
fn b24_quota_lists_are_lru_and_keep_their_order_when_the_owner_leaves() {
    scenario(
        "store 1000
         a quota 700            -> done
         a put A:100            -> done
         a put B:100            -> done
         a put C:100            -> done
         b get A                -> got A
         b release A            -> done
         a put D:500            -> done
         a state A,B,C,D        -> sealed, absent, sealed, sealed
         a dies                 ->
         b evict 1              -> evicted 100 in 1
         b state A,C,D          -> sealed, absent, sealed",
    );
}

#[test]
fn b24_an_explicit_evict_reaches_quota_objects_after_all_others() {
    scenario(
        "store 1000
         a quota 500      -> done
         a put A:100      -> done
         b put B:100      -> done
         b evict 1        -> evicted 100 in 1
         b state A,B      -> sealed, absent
         b evict 1        -> evicted 100 in 1
         b state A        -> absent",
    );
}

#[test]
fn b24_a_quota_also_holds_for_a_create_that_keeps_others() {
    scenario(
        "store 1000
         a quota 100         -> done
         a create X 80       -> created
         a create Y 30 keep  -> an object of 30 bytes does not fit into this client's quota of 100 bytes, of which 80 are used
         a create Y 20 keep  -> created",
    );
}

#[test]
fn a_create_that_exceeds_its_quota_does_not_keep_others_waiting() {
    scenario(
        "store 100
         a quota 50                       -> done
         a create X 40                    -> created
         a create Y 20 keep wait=forever  -> an object of 20 bytes does not fit into this client's quota of 50 bytes, of which 40 are used
         c create C 60                    -> created
         b create B 20 keep wait=forever  ->
         d create D 0 wait=forever        ->
         b quota 10                       -> done; an object of 20 bytes does not fit into this client's quota of 10 bytes, of which 0 are used; d: created",
    );
}

// ---- list, clients, debug text, events ----------------------------------------------------------

#[test]
fn list_has_sealed_and_unsealed_objects_with_their_times() {
    scenario(
        "store 1000
         a create X 10+3   -> created
         tick 7            ->
         a seal X          -> done
         b create Y 5      -> created
         b list            -> X 10+3 refs 1 sealed after 7, Y 5+0 refs 1 created",
    );
}

#[test]
fn clients_can_be_listed_by_what_they_hold() {
    scenario(
        "store 1000
         a put X:10+1,Y:5  -> done
         b get X,Y,X       -> got X,Y,X
         b name reader     -> done
         c get Y           -> got Y
         a clients         -> a 0 objects 0 bytes, reader 2 objects 16 bytes, c 1 objects 5 bytes
         a clients X       -> reader 2 objects 16 bytes
         a clients Q       ->",
    );
}

#[test]
fn the_debug_text_has_the_lines_of_the_original() {
    scenario(
        "store 10000000
         a name alice         -> done
         a quota 5242880      -> done
         a create A 2097152   -> created
         a create B 2097152   -> created
         a seal A release     -> done
         a debug              -> num clients with quota: 1|quota map size: 2|pinned quota map size: 1|allocated bytes: 4194304|allocation limit: 10000000|pinned bytes: 2097152|(global lru) capacity: 4757120|(global lru) used: 52.4288%|(global lru) num objects: 0|(global lru) num evictions: 0|(global lru) bytes evicted: 0|(alice) capacity: 5242880|(alice) used: 80%|(alice) num objects: 2
         a seal B release     -> done
         a dies               ->
         b debug              -> num clients with quota: 0|quota map size: 0|pinned quota map size: 0|allocated bytes: 4194304|allocation limit: 10000000|pinned bytes: 0|(global lru) capacity: 10000000|(global lru) used: 41.943%|(global lru) num objects: 2|(global lru) num evictions: 0|(global lru) bytes evicted: 0",
    );
}

#[test]
fn a_subscriber_gets_a_snapshot_its_end_and_then_events_in_order() {
    scenario(
        "store 100
         a put A:1,B:2+3,C:4  -> done
         a create U 1         -> created
         a delete B           -> deleted
         s subscribe          -> done; stream
         s subscribe          -> this connection is subscribed already
         s events             -> sealed A 1+0, sealed C 4+0, snapshot end
         t subscribe          -> done; stream
         a delete C           -> deleted
         t events             -> sealed A 1+0, snapshot end, deleted C
         a put D:5            -> done
         a seal U             -> done
         a create X 100       -> full: 100 asked, 7 used, 1 pinned
         a create X 94        -> created
         s events             -> deleted C, sealed D 5+0, sealed U 1+0, evicted A
         s events             ->",
    );
}

// ---- weaknesses of the original that are about the rules ----------------------------------------

#[test]
fn b04_duplicate_ids_in_one_get() {
    scenario(
        "store 1000
         a put A:1            -> done
         b get A,A            -> got A,A
         b get A,A,B          ->
         tick 100             ->
         a put B:1            -> b: got A,A,B; done
         b get C,C            ->
         c get C,C timeout=5  ->
         c dies               ->
         a put C:1            -> b: got C,C; done
         tick 10              ->
         b release A times=4  -> done
         b release C times=2  -> done",
    );
}

#[test]
fn b06_release_of_an_unsealed_object_is_an_abort_and_quota_clients_may_repeat_a_create() {
    scenario(
        "store 1000
         a create X 10   -> created
         a release X     -> done
         a state X       -> absent
         a evict 1000    -> evicted 0 in 0
         b quota 100     -> done
         b create Y 50   -> created
         b abort Y       -> done
         b create Y 60   -> created
         b seal Y        -> done
         c get Y         -> got Y
         d delete Y      -> in use
         b release Y     -> done
         c release Y     -> done
         b create Y 70   -> created",
    );
}

#[test]
fn b13_an_oversized_create_evicts_nothing() {
    scenario(
        "store 100
         a put A:10,B:10,C:10,D:10,E:10,F:10,G:10,H:10,I:10,J:10  -> done
         a create X 200                -> full: 200 asked, 100 used, 0 pinned
         b get A                       -> got A
         a create X 100                -> full: 100 asked, 100 used, 10 pinned
         a usage                       -> used 100 pinned 10 objects 10
         a create X 10                 -> created
         a usage                       -> used 100 pinned 20 objects 10",
    );
}

#[test]
fn b21_a_deferred_delete_does_not_outlive_its_object() {
    scenario(
        "store 1000
         a create X 10   -> created
         b delete X      -> not sealed
         a abort X       -> done
         a create X 10   -> created
         a seal X        -> done
         a release X     -> done
         b state X       -> sealed
         a create Y 10   -> created
         b delete Y      -> not sealed
         a dies          ->
         b put Y:10      -> done
         b state Y       -> sealed",
    );
}

#[test]
fn b22_an_object_is_there_when_it_is_sealed_for_everybody_alike() {
    scenario(
        "store 1000
         a state X       -> absent
         a create X 10   -> created
         a state X       -> created
         b state X       -> created
         a get X timeout=0 -> got -
         a seal X        -> done
         a state X       -> sealed
         b state X       -> sealed",
    );
}

#[test]
fn b25_nothing_unsealed_survives_its_creators_last_handle() {
    scenario(
        "store 1000
         a create X 10   -> created
         a release X     -> done
         a create Y 10   -> created
         a release Y     -> done
         a dies          ->
         b list          ->",
    );
}
