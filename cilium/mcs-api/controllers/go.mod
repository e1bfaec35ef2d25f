// Stands in for a nested module that Cilium's operator asks for one constant of, and that no module proxy serves.
module sigs.k8s.io/mcs-api/controllers

go 1.24
