//! Creates that meet memory which is being given back to the system, as scripts.

use super::scenario::scenario;

/// Two objects of 512 bytes fill the store; the first one goes, and half of its memory is with the
/// system.
const HALF_AWAY: &str = "store 1024 segment=1024 trim=100
    a create X 512           -> created
    a create Y 512           -> created
    a seal X                 -> done
    a seal Y                 -> done
    a release X              -> done
    a delete X               -> deleted
    tick 0                   ->
    tick 100                 -> trim 0+256
    ";

fn half_away(script: &str) {
    scenario(&format!("{HALF_AWAY}{script}"));
}

#[test]
fn memory_goes_back_slice_by_slice_and_then_it_is_quiet() {
    half_away(
        "done                     -> trim 256+256
         done                     ->
         tick 100                 ->
         tick 100000              ->
         b create Z 512           -> created",
    );
}

#[test]
fn a_create_that_may_not_wait_waits_for_a_slice() {
    half_away(
        "b create Z 512           ->
         a state Z                -> absent
         done                     -> b: created",
    );
}

#[test]
fn a_put_waits_for_a_slice_as_well() {
    half_away(
        "b put Z:512              ->
         done                     -> b: done
         a get Z                  -> got Z",
    );
}

#[test]
fn what_fits_elsewhere_does_not_wait() {
    half_away(
        "b create Z 256           -> created
         done                     ->",
    );
}

#[test]
fn what_fits_nowhere_is_refused_at_once() {
    half_away(
        "b create Z 513           -> full: 513 asked, 512 used, 512 pinned
         done                     -> trim 256+256",
    );
}

#[test]
fn who_may_evict_does_so_and_does_not_wait_for_a_slice() {
    half_away(
        "a release Y              -> done
         b create Z 512           -> created
         a state Y                -> absent
         done                     ->",
    );
}

#[test]
fn what_needs_room_and_eviction_elsewhere_has_it_without_waiting() {
    // There is no room but that of Y: the slice is not in the way.
    half_away(
        "b create Z 256           -> created
         failed                   ->
         b create W 256           -> created
         a release Y              -> done
         b create V 300           -> created
         a state Y                -> absent",
    );
}

#[test]
fn an_object_of_the_capacity_always_fits() {
    half_away(
        "a release Y              -> done
         b create Z 1024          ->
         done                     -> b: created
         a state Y                -> absent",
    );
}

#[test]
fn a_deadline_does_not_come_while_a_slice_is_waited_for() {
    half_away(
        "b create Z 512 wait=5    ->
         tick 10                  ->
         done                     -> b: created",
    );
    half_away(
        "b create Z 600 wait=5    ->
         tick 10                  -> b: full: 600 asked, 512 used, 512 pinned
         done                     -> trim 256+256",
    );
}

#[test]
fn who_may_not_wait_goes_before_those_who_wait_and_is_answered_with_the_slice() {
    half_away(
        "b create W 1024 wait=forever ->
         c create Z 512           ->
         d create V 512           ->
         done                     -> c: created; d: full: 512 asked, 1024 used, 1024 pinned",
    );
}

#[test]
fn a_create_that_waits_for_a_slice_can_be_cancelled_and_can_leave() {
    half_away(
        "b create Z 512           ->
         b cancel                 -> the request was cancelled; done
         done                     -> trim 256+256",
    );
    half_away(
        "b create Z 512           ->
         b dies                   ->
         done                     -> trim 256+256",
    );
}

#[test]
fn a_name_that_is_taken_meanwhile_is_refused() {
    half_away(
        "b create Z 512           ->
         c create Z 10            -> created; b: exists Z
         done                     -> trim 320+192",
    );
}

#[test]
fn where_it_does_not_work_nobody_tries_again() {
    half_away(
        "failed                   ->
         tick 1000                ->
         a release Y              -> done
         a delete Y               -> deleted
         tick 1000                ->
         tick 1000                ->",
    );
}
