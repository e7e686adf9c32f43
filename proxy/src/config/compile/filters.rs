//! pb network and HTTP filters by their typed_config type URL to its compiled form.
