package controlplane

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// Users of a kubeconfig log in with a certificate or with a token.
type login struct {
	pair  Pair
	token string
}

// kubeconfig renders the file by which a user reaches the API server. It is
// JSON, which every reader of YAML takes.
func kubeconfig(server string, authority []byte, user string, by login) ([]byte, error) {
	credentials := object{"token": by.token}
	if by.token == "" {
		credentials = object{"client-certificate-data": by.pair.Certificate, "client-key-data": by.pair.Key}
	}
	return json.MarshalIndent(object{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": "testbed",
		"clusters":        []object{{"name": "testbed", "cluster": object{"server": server, "certificate-authority-data": authority}}},
		"contexts":        []object{{"name": "testbed", "context": object{"cluster": "testbed", "user": user}}},
		"users":           []object{{"name": user, "user": credentials}},
	}, "", "  ")
}

// writeKubeconfig makes DIR/NAME.kubeconfig for a user that logs in by certificate.
func (k *keys) writeKubeconfig(server, name, user string, groups ...string) (string, error) {
	pair, err := k.cluster.Client(user, groups...)
	if err != nil {
		return "", err
	}
	return k.save(server, name, user, login{pair: pair})
}

func (k *keys) save(server, name, user string, by login) (string, error) {
	authority, err := os.ReadFile(k.file("ca.crt"))
	if err != nil {
		return "", err
	}
	text, err := kubeconfig(server, authority, user, by)
	if err != nil {
		return "", err
	}
	path := filepath.Join(k.dir, name+".kubeconfig")
	return path, os.WriteFile(path, text, 0o600)
}
