//! pb RouteConfiguration to its compiled form.
