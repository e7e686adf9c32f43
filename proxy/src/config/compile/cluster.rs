//! pb Cluster to its compiled form.
