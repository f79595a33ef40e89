//! Loads the kernel object, attaches the plan and undoes all of it.
