//! Wire formats: fixed layouts, checked views, golden bytes.
