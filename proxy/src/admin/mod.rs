//! The admin interface, a file per endpoint.
