// kube-schema reads Kubernetes manifests from the files of its command line, strictly, into Kubernetes' own types: an
// unknown kind, an unknown field, a field twice or a value of the wrong type is an error. It prints what it has read.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	failed := false
	for _, path := range os.Args[1:] {
		if err := read(path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			failed = true
		}
	}
	if failed || len(os.Args) < 2 {
		os.Exit(1)
	}
}

func read(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	options := json.SerializerOptions{Yaml: true, Strict: true}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, options)
	documents := yaml.NewYAMLReader(bufio.NewReader(file))
	for number := 1; ; number++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var generic map[string]any
		if err := yaml.Unmarshal(document, &generic); err != nil {
			return fmt.Errorf("document %d: %w", number, err)
		}
		if len(generic) == 0 {
			continue
		}
		object, kind, err := strict.Decode(document, nil, nil)
		if err != nil {
			return fmt.Errorf("document %d: %w", number, err)
		}
		if _, unknown := object.(*runtime.Unknown); unknown {
			return fmt.Errorf("document %d: %v is not known", number, kind)
		}
		fmt.Printf("%s: %s\n", path, kind.Kind)
	}
}
