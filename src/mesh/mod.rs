//! Who is out there, certificates and names.
