use super::*;

const WINDOW: Window = Window {
    from_ns: 1_000_000,
    to_ns: 5_000_000,
    stands_for_ns: 40_000_000,
    cpu_ns: [4_000_000, 40_000_000],
};

fn birth(at_ns: u64, address: u64, site: u32) -> Event {
    Event {
        at_ns,
        thread: 1,
        address,
        what: What::Birth { site, bytes: 64 },
    }
}

fn death(at_ns: u64, address: u64) -> Event {
    Event {
        at_ns,
        thread: 1,
        address,
        what: What::Death { class: 64 },
    }
}

fn later(window: Window, ns: u64) -> Window {
    Window {
        from_ns: window.from_ns + ns,
        to_ns: window.to_ns + ns,
        ..window
    }
}

#[test]
fn blocks_are_paired_within_windows_and_across() {
    let mut turnover = Turnover::new(100);
    let mut events = vec![
        // Out of order, and of no window.
        death(3_000_000, 0x10),
        birth(2_000_000, 0x10, 1),
        birth(100, 0x60, 1),
        // Survives; too late to count as a survivor; survives and is known.
        birth(2_500_000, 0x20, 1),
        birth(4_500_000, 0x30, 1),
        birth(3_000_000, 0x40, 2),
        // From before: too early to count, and counted.
        death(1_100_000, 0x70),
        death(4_900_000, 0x80),
    ];
    turnover.window(WINDOW, &mut events);
    let shown = turnover.take();
    let site = |shown: &Shown, site| shown.sites[&site];
    assert_eq!(site(&shown, 1).born.seen, 3);
    assert_eq!(
        (site(&shown, 1).survived.seen, site(&shown, 2).survived.seen),
        (1, 1)
    );
    assert_eq!(
        (shown.unseen[&64].seen, shown.windows, shown.events),
        (1, 1, 7)
    );

    // Block 0x20 dies, and so does the late one; 0x40 is handed out again: its death was not seen.
    let window = later(WINDOW, 40_000_000);
    let mut events = vec![
        death(43_000_000, 0x20),
        death(43_500_000, 0x30),
        birth(44_000_000, 0x40, 1),
        death(44_100_000, 0x40),
    ];
    turnover.window(window, &mut events);
    let shown = turnover.take();
    assert_eq!((site(&shown, 1).died.seen, site(&shown, 2).reused), (2, 1));
    assert!(shown.unseen.is_empty() && site(&shown, 1).survived.is_empty());
}

#[test]
fn an_event_stands_for_the_time_between_windows() {
    let mut turnover = Turnover::new(100);
    turnover.window(WINDOW, &mut vec![birth(2_000_000, 0x10, 1)]);
    let Shown { sites, .. } = turnover.take();
    let survived = sites[&1].survived;
    // 4 ms of 40 ms, of which three quarters count; two microseconds of it went into the probes.
    assert_eq!(survived.plain, 40.0 / 3.0);
    assert!((survived.corrected / survived.plain - 4.0 / 3.998 * 39.998 / 40.0).abs() < 1e-9);
    assert!((sites[&1].born.plain - 10.0).abs() < 1e-9);
}

#[test]
fn a_window_full_of_hits_covers_less_of_the_program() {
    let mut turnover = Turnover::new(100_000);
    // A pair each 4 µs, of which the probes take 2.7; nothing else is to be learned from.
    let events = (0..1000).flat_map(|n| {
        let at = 1_000_000 + n * 4000;
        [birth(at + 3300, 0x10, 1), death(at + 4000 - 1, 0x10)]
    });
    let other = Event {
        thread: 2,
        ..birth(3_000_000, 0x20, 2)
    };
    let kept = birth(3_000_001, 0x30, 3);
    turnover.window(WINDOW, &mut events.chain([other, kept]).collect());
    let Shown { sites, .. } = turnover.take();
    // The other thread was not held up.
    let idle = sites[&2].survived;
    assert!(idle.corrected / idle.plain < 1.01);
    let busy = sites[&3].survived;
    assert!(
        busy.corrected > 5.0 * busy.plain && busy.dense > 50.0 * busy.plain,
        "{busy:?}"
    );
}

#[test]
fn of_more_blocks_than_there_is_room_for_a_fair_sample_is_followed() {
    let mut turnover = Turnover::new(100);
    // Two sites, one after the other: the first must not have all the room.
    let births = |site| {
        (0..1000).map(move |n| birth(2_000_000 + n, (0x1000 * u64::from(site) + n) << 4, site))
    };
    let mut events: Vec<_> = births(1).collect();
    turnover.window(WINDOW, &mut events);
    events = births(2).collect();
    turnover.window(WINDOW, &mut events);
    let shown = turnover.take();
    assert_eq!(
        [1, 2].map(|site| shown.sites[&site].survived.seen),
        [1000, 1000]
    );
    let known = 2000 - turnover.not_followed();
    assert!((40..=100).contains(&known), "{known}");

    let death = |event: &Event| Event {
        what: What::Death { class: 0 },
        ..*event
    };
    let mut events: Vec<_> = births(1)
        .chain(births(2))
        .map(|event| death(&event))
        .collect();
    turnover.window(WINDOW, &mut events);
    let shown = turnover.take();
    let died = [1, 2].map(|site| shown.sites[&site].died.seen);
    assert_eq!(died.iter().sum::<u64>(), known);
    assert!(died.iter().all(|&n| n > known / 4), "{died:?}");
    assert_eq!(shown.unseen[&0].seen, 2000 - known);
}
