//! pb string, header, query, path and fraction matchers to its compiled form.
