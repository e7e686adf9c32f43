//! pb Listener to its compiled form.
