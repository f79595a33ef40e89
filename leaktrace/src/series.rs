//! A site's live bytes over time.
