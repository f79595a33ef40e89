//! Layouts from the table, and from types that are not as they should be.

use super::*;

fn of(text: &str) -> Layout {
    Layout::of(&GoVersion::parse(text).unwrap(), None).unwrap()
}

#[test]
fn every_measured_release_has_all_that_is_read() {
    for version in table::versions() {
        let layout = of(&format!("go{version}"));
        assert_eq!(layout.source, Source::Table(version));
        for probed in [SET_PROFILE_BUCKET, FREE_SPECIAL, GC_MARK_TERMINATION] {
            layout.check_arguments(&probed).unwrap();
        }
        let moved = Probed {
            name: FREE_SPECIAL.name,
            arguments: &[("p", Register::RAX)],
        };
        assert!(layout.check_arguments(&moved).is_err());
    }
    let error = Layout::of(&GoVersion::parse("go1.28.1").unwrap(), None).unwrap_err();
    assert!(error.to_string().contains("go1.28.1"));
}

#[test]
fn sizes_of_buckets() {
    assert_eq!(of("go1.27.3").bucket.total_size(5), 48 + 40 + 64);
    assert_eq!(of("go1.26.6").bucket.total_size(5), 48 + 40 + 128);
}

#[test]
fn a_runtime_that_lacks_a_field_or_has_it_otherwise_is_refused() {
    let (types, _) = table::types(&GoVersion::parse("go1.27.3").unwrap()).unwrap();
    let changed = |change: fn(&mut RuntimeTypes)| {
        let mut types = types.clone();
        change(&mut types);
        let made = Layout::new(types, Source::Table("1.27.3"));
        made.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(changed(|_| ()), Ok(()));
    let without = changed(|types| {
        types
            .structs
            .get_mut("runtime.mspan")
            .unwrap()
            .fields
            .remove("limit");
    });
    assert!(without.unwrap_err().contains("runtime.mspan.limit"));
    let wider = changed(|types| {
        let g = types.structs.get_mut("runtime.g").unwrap();
        g.fields.get_mut("waitreason").unwrap().size = 2;
    });
    assert!(wider.unwrap_err().contains("waitreason` has 2 bytes"));
    let moved = changed(|types| {
        let hchan = types.structs.get_mut("runtime.hchan").unwrap();
        hchan.fields.get_mut("closed").unwrap().offset = 32;
    });
    assert!(moved.unwrap_err().contains("closed` is at 32"));
    let vast = changed(|types| {
        types.structs.get_mut("runtime.bucket").unwrap().size = u32::MAX;
    });
    assert!(
        vast.unwrap_err()
            .contains("`runtime.bucket` has 4294967295 bytes")
    );
    let deep = changed(|types| {
        types
            .constants
            .insert("runtime.maxProfStackDepth".to_owned(), -1);
    });
    assert!(deep.unwrap_err().contains("stacks of -1 frames"));
    let other = changed(|types| {
        types.constants.insert("runtime.memProfile".to_owned(), 2);
    });
    assert!(other.unwrap_err().contains("memProfile` is 2"));
}
