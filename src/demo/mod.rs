//! Two hosts on one machine, with proof line by line.
