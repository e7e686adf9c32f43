//! pb ClusterLoadAssignment to its compiled form.
