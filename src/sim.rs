//! stub
pub mod errcode;
pub mod rules;
