//! pb AccessLog to its compiled form.
