//! Renderers of the result: the report schema, text and JSON.
