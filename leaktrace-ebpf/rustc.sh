#!/bin/sh
# Stands before the compiler of the kernel side: `rustc.sh RUSTC ARGUMENTS`. cargo tells crates apart by a hash,
# which becomes part of the names of functions. For leaktrace-common, which is outside this workspace, and so for what
# depends on it, it is a hash of the folder that the checkout is in. Ours get one that is the same everywhere.
case "$*" in
*"--crate-name leaktrace"*)
    for argument; do
        shift
        case "$argument" in
        metadata=*) argument=metadata=leaktrace ;;
        esac
        set -- "$@" "$argument"
    done
    ;;
esac
exec "$@"
