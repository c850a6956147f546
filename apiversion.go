package main

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// apiVersion is a version of the Docker API as one number: 1.41 is 1041.
// Zero means that none is known, or none was asked for.
type apiVersion int

// ourLowest is the oldest version that the route table was written for.
const ourLowest = apiVersion(1024)

// parseAPIVersion reads "1.41". Leading zeros, signs and more than three minor digits are refused.
func parseAPIVersion(s string) (apiVersion, error) {
	major, minor, ok := strings.Cut(s, ".")
	a, errA := strconv.ParseUint(major, 10, 8)
	b, errB := strconv.ParseUint(minor, 10, 16)
	zeros := len(major) > 1 && major[0] == '0' || len(minor) > 1 && minor[0] == '0'
	if !ok || errA != nil || errB != nil || b > 999 || zeros {
		return 0, fmt.Errorf("API version %q: expected two numbers with a dot, as in 1.41", s)
	}
	return apiVersion(a*1000 + b), nil
}

func (v apiVersion) String() string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%d.%d", v/1000, v%1000)
}

// clamp brings v into the range an engine speaks; no version asks for its highest.
func (v apiVersion) clamp(lowest, highest apiVersion) apiVersion {
	if v == 0 || v > highest {
		return highest
	}
	return max(v, lowest)
}

// splitVersion cuts /v1.41 off a path. A path whose prefix only looks like a
// version, as in /v1.41.0/info, is returned whole and will match no route.
func splitVersion(path string) (version apiVersion, rest string) {
	if !strings.HasPrefix(path, "/v") {
		return 0, path
	}
	prefix, after, ok := strings.Cut(path[2:], "/")
	if !ok {
		return 0, path
	}
	v, err := parseAPIVersion(prefix)
	if err != nil {
		return 0, path
	}
	return v, "/" + after
}

// checkVersion refuses versions outside what the fleet speaks, in an engine's words.
func checkVersion(v, lowest, highest apiVersion) error {
	switch {
	case v == 0 || highest == 0:
		return nil
	case v > highest:
		return errorf(http.StatusBadRequest, "client version %s is too new. Maximum supported API version is %s", v, highest)
	case v < min(lowest, ourLowest):
		return errorf(http.StatusBadRequest, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, min(lowest, ourLowest))
	}
	return nil
}

// listFields are keys of a container list entry that not every version of the API has.
// Entries are stored as the engine's highest version gives them and cut for older clients.
// Source: the API's version history.
var listFields = []struct {
	key  string     // HostConfig.Annotations is a key within a key
	from apiVersion // first version that has it
}{
	{"Health", 1052},
	{"ImageManifestDescriptor", 1048},
	{"HostConfig.Annotations", 1046},
}

// imageFields are the same for the image list.
var imageFields = []struct {
	key        string
	from, last apiVersion
}{
	{"VirtualSize", 0, 1043},
	{"Descriptor", 1048, 0},
	{"Manifests", 1047, 0},
	{"Identity", 1054, 0},
}
