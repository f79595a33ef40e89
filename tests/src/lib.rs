//! Harness of the privileged integration tests.
