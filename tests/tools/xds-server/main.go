// A control plane on go-control-plane for tests: serves the resources of one file to every node, over ADS and over the
// services of single types, in both variants of the protocol; says every request as one line of JSON.
//
//	xds-server -listen 127.0.0.1:0 -resources FILE
//
// FILE holds {"resources": [{"@type": …}, …]} and is read again when it changes; the version is a hash of it. Addresses
// with a slash are unix sockets. The first line of output is the address.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	extension "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	// What the resources may hold.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// Every node sees the same.
type everyone struct{}

func (everyone) ID(*core.Node) string { return "" }

var (
	printing sync.Mutex
	refused  = flag.Duration("after-refusal", 5*time.Second, "how long a refused update waits to be sent again")
)

func say(line map[string]any) {
	printing.Lock()
	defer printing.Unlock()
	for key, value := range line {
		switch value := value.(type) {
		case string:
			if value == "" {
				delete(line, key)
			}
		case []string:
			if len(value) == 0 {
				delete(line, key)
			}
		case map[string]string:
			if len(value) == 0 {
				delete(line, key)
			}
		case bool:
			if !value {
				delete(line, key)
			}
		}
	}
	text, err := json.Marshal(line)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
}

func kind(url string) string { return url[strings.LastIndex(url, ".")+1:] }

func callbacks() server.Callbacks {
	return server.CallbackFuncs{
		StreamRequestFunc: func(stream int64, r *discovery.DiscoveryRequest) error {
			say(map[string]any{
				"stream": stream, "type": kind(r.TypeUrl), "names": r.ResourceNames, "node": r.Node.GetId() != "",
				"version": r.VersionInfo, "nonce": r.ResponseNonce, "error": r.GetErrorDetail().GetMessage(),
			})
			if r.ErrorDetail != nil {
				// The cache answers a refusal with the same again.
				time.Sleep(*refused)
			}
			return nil
		},
		StreamDeltaRequestFunc: func(stream int64, r *discovery.DeltaDiscoveryRequest) error {
			say(map[string]any{
				"stream": stream, "type": kind(r.TypeUrl), "subscribe": r.ResourceNamesSubscribe,
				"unsubscribe": r.ResourceNamesUnsubscribe, "initial": r.InitialResourceVersions, "node": r.Node.GetId() != "",
				"nonce": r.ResponseNonce, "error": r.GetErrorDetail().GetMessage(),
			})
			return nil
		},
		StreamClosedFunc:      func(stream int64, _ *core.Node) { say(map[string]any{"stream": stream, "closed": true}) },
		DeltaStreamClosedFunc: func(stream int64, _ *core.Node) { say(map[string]any{"stream": stream, "closed": true}) },
	}
}

func load(path string) (cache.ResourceSnapshot, string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	var file struct {
		Resources []json.RawMessage `json:"resources"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, "", err
	}
	byType := map[string][]types.Resource{}
	for _, raw := range file.Resources {
		var any anypb.Any
		if err := protojson.Unmarshal(raw, &any); err != nil {
			return nil, "", err
		}
		message, err := any.UnmarshalNew()
		if err != nil {
			return nil, "", err
		}
		byType[any.TypeUrl] = append(byType[any.TypeUrl], message)
	}
	version := fmt.Sprintf("%x", sha256.Sum256(text))[:8]
	snapshot, err := cache.NewSnapshot(version, byType)
	return snapshot, version, err
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "host:port, or the path of a unix socket")
	resources := flag.String("resources", "", "file with the resources")
	flag.Parse()
	network := "tcp"
	if strings.Contains(*listen, "/") {
		network = "unix"
		_ = os.Remove(*listen)
	}
	socket, err := net.Listen(network, *listen)
	if err != nil {
		log.Fatal(err)
	}
	snapshots := cache.NewSnapshotCache(true, everyone{}, nil)
	// Where a stream asks for one name of many, the others must not hold its answer back.
	single := cache.NewSnapshotCache(false, everyone{}, nil)
	current := ""
	refresh := func() {
		snapshot, version, err := load(*resources)
		if err != nil {
			log.Print(err)
			return
		}
		if version == current {
			return
		}
		for _, to := range []cache.SnapshotCache{snapshots, single} {
			if err := to.SetSnapshot(context.Background(), "", snapshot); err != nil {
				log.Print(err)
				return
			}
		}
		current = version
	}
	refresh()
	go func() {
		for range time.Tick(50 * time.Millisecond) {
			refresh()
		}
	}()
	rpc := grpc.NewServer()
	ads := server.NewServer(context.Background(), snapshots, callbacks())
	discovery.RegisterAggregatedDiscoveryServiceServer(rpc, ads)
	xds := server.NewServer(context.Background(), single, callbacks())
	cluster.RegisterClusterDiscoveryServiceServer(rpc, xds)
	endpoint.RegisterEndpointDiscoveryServiceServer(rpc, xds)
	listener.RegisterListenerDiscoveryServiceServer(rpc, xds)
	route.RegisterRouteDiscoveryServiceServer(rpc, xds)
	secret.RegisterSecretDiscoveryServiceServer(rpc, xds)
	extension.RegisterExtensionConfigDiscoveryServiceServer(rpc, xds)
	fmt.Println(socket.Addr())
	log.Fatal(rpc.Serve(socket))
}
