//go:build tools

package tools

// What scripts/e2e.sh builds, named so that `go mod tidy` keeps go.mod and go.sum complete for them too.
import (
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
