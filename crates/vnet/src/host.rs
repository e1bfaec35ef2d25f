//! What a Linux host must look like to behave as a region says.
