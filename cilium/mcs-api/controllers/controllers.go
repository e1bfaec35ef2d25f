// Package controllers has the one constant that Cilium's operator asks the real
// module of this name for.
package controllers

// DerivedServiceAnnotation names the Service that stands for an imported one.
const DerivedServiceAnnotation = "multicluster.kubernetes.io/derived-service"
