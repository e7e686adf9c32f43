//! pb HttpConnectionManager to its compiled form.
