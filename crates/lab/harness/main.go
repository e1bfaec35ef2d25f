// Command harness is a container runtime's half of CNI, and nothing else: one call of libcni, as containerd and
// CRI-O make it, printed as one line of JSON. The tests of crates/lab/tests/cni_libcni.rs say what must come of it.
//
//	harness VERB LIST CONTAINER NETNS IFNAME
//
// VERB is add, check, del, gc, status or cached. CNI_PATH says where plugins are, HARNESS_CACHE where libcni
// keeps results between calls, HARNESS_CAPABILITIES what a runtime hands on (JSON), CNI_ARGS its arguments, and
// HARNESS_KEEP (JSON) the attachments that gc leaves.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

type answer struct {
	Result types.Result `json:"result,omitempty"`
	Error  *failure     `json:"error,omitempty"`
}

type failure struct {
	// Zero when it is libcni's own.
	Code    uint   `json:"code"`
	Message string `json:"message"`
	Details string `json:"details"`
}

func main() {
	result, err := run(os.Args[1:])
	said := answer{Result: result}
	if err != nil {
		said.Error = &failure{Message: err.Error()}
		var plugin *types.Error
		if errors.As(err, &plugin) {
			said.Error = &failure{Code: plugin.Code, Message: plugin.Msg, Details: plugin.Details}
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if said.Error != nil {
		os.Exit(1)
	}
}

func run(arguments []string) (types.Result, error) {
	if len(arguments) != 5 {
		return nil, errors.New("usage: harness VERB LIST CONTAINER NETNS IFNAME")
	}
	verb := arguments[0]
	list, err := libcni.ConfListFromFile(arguments[1])
	if err != nil {
		return nil, err
	}
	runtime := &libcni.RuntimeConf{ContainerID: arguments[2], NetNS: arguments[3], IfName: arguments[4]}
	for _, pair := range strings.Split(os.Getenv("CNI_ARGS"), ";") {
		if name, value, found := strings.Cut(pair, "="); found {
			runtime.Args = append(runtime.Args, [2]string{name, value})
		}
	}
	if err := read("HARNESS_CAPABILITIES", &runtime.CapabilityArgs); err != nil {
		return nil, err
	}
	path := filepath.SplitList(os.Getenv("CNI_PATH"))
	cni := libcni.NewCNIConfigWithCacheDir(path, os.Getenv("HARNESS_CACHE"), nil)
	ctx := context.Background()
	switch verb {
	case "add":
		return cni.AddNetworkList(ctx, list, runtime)
	case "check":
		return nil, cni.CheckNetworkList(ctx, list, runtime)
	case "del":
		return nil, cni.DelNetworkList(ctx, list, runtime)
	case "cached":
		return cni.GetNetworkListCachedResult(list, runtime)
	case "gc":
		arguments := &libcni.GCArgs{}
		if err := read("HARNESS_KEEP", &arguments.ValidAttachments); err != nil {
			return nil, err
		}
		return nil, cni.GCNetworkList(ctx, list, arguments)
	case "status":
		return nil, cni.GetStatusNetworkList(ctx, list)
	default:
		return nil, fmt.Errorf("there is no verb %q", verb)
	}
}

func read(name string, into any) error {
	text := os.Getenv(name)
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
