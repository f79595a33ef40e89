//! Stacks of a Rust program without frame pointers: closures, trait objects, a sort's callback, a thread, a
//! panic's unwinding. At the bottom of each a mapping of one page.
//!
//! Prints "ready PID", waits for a line on stdin, works, prints the truth as one line of JSON (as
//! stacks.cpp does) and lives on until stdin closes.

use std::cell::Cell;
use std::hint::black_box;
use std::io::{BufRead, stdin};

unsafe extern "C" {
    fn mmap(at: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
}

#[inline(always)]
fn map_page() {
    // SAFETY: an anonymous mapping at an address of the kernel's choice.
    let at = unsafe { mmap(std::ptr::null_mut(), 4096, 3, 0x22, -1, 0) };
    assert_ne!(at as isize, -1);
    black_box(at);
}

#[inline(never)]
fn recursion(depth: u32) -> u32 {
    if depth == 0 {
        map_page();
        return 0;
    }
    black_box(recursion(black_box(depth - 1))) + 1
}

trait Shape {
    fn draw(&self) -> u32;
}

struct Circle(u32);

impl Shape for Circle {
    #[inline(never)]
    fn draw(&self) -> u32 {
        map_page();
        black_box(self.0)
    }
}

#[inline(never)]
fn trait_object(shape: &dyn Shape) -> u32 {
    black_box(shape.draw()) + 1
}

#[inline(never)]
fn sorts() {
    let done = Cell::new(false);
    let mut numbers: Vec<u32> = (0..100).map(|i| i * 7919 % 101).collect();
    numbers.sort_by(|a, b| {
        if !done.replace(true) {
            compared(*a);
        }
        a.cmp(b)
    });
    black_box(numbers);
}

#[inline(never)]
fn compared(number: u32) {
    map_page();
    black_box(number);
}

#[inline(never)]
fn at_thread_start() {
    map_page();
    black_box(());
}

struct AtUnwinding;

impl Drop for AtUnwinding {
    #[inline(never)]
    fn drop(&mut self) {
        map_page();
        black_box(());
    }
}

#[inline(never)]
fn panics() {
    let _guard = AtUnwinding;
    if black_box(true) {
        std::panic::resume_unwind(Box::new(()));
    }
}

#[inline(never)]
fn catches() {
    let caught = std::panic::catch_unwind(panics);
    assert!(black_box(caught).is_err());
}

fn main() {
    println!("ready {}", std::process::id());
    let mut lines = stdin().lock().lines();
    lines.next();
    recursion(50);
    trait_object(black_box(&Circle(3)));
    sorts();
    std::thread::spawn(at_thread_start).join().unwrap();
    catches();
    let shapes = [
        ("recursion", &["recursion", "recursion", "main"][..]),
        ("trait_object", &["Circle as stacks::Shape>::draw", "trait_object", "main"]),
        ("sort", &["compared", "sorts", "main"]),
        ("thread", &["at_thread_start", "start_thread"]),
        ("drop", &["AtUnwinding", "panics", "catches", "main"]),
    ];
    let shapes: Vec<String> = shapes
        .iter()
        .map(|(shape, functions)| format!(r#"{{"shape":"{shape}","functions":{functions:?}}}"#))
        .collect();
    println!("{{\"shapes\":[{}]}}", shapes.join(","));
    lines.next();
}
