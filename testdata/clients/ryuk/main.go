// Ryuk stands in for testcontainers/ryuk, which cannot be pulled in a lab: a test
// suite tells it on port 8080 what it will make, and when the suite's connections
// are gone, and stay gone for a second, all of that is removed through the socket
// of the engine that this container runs on.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
)

func main() {
	if err := run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run() error {
	docker, err := client.NewClientWithOpts(client.WithHost("unix:///var/run/docker.sock"), client.WithAPIVersionNegotiation())
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	fmt.Println("Started")
	wanted := make(chan filters.Args)
	connections := make(chan int)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			connections <- 1
			go func() {
				defer func() { conn.Close(); connections <- -1 }()
				for lines := bufio.NewScanner(conn); lines.Scan(); fmt.Fprintln(conn, "ACK") {
					values, err := url.ParseQuery(lines.Text())
					if err != nil {
						fmt.Println(err)
						return
					}
					args := filters.NewArgs()
					for _, label := range values["label"] {
						args.Add("label", label)
					}
					wanted <- args
				}
			}()
		}
	}()
	var all []filters.Args
	open := 0
	idle := time.NewTimer(time.Minute) // nobody came
	for {
		select {
		case args := <-wanted:
			if args.Len() > 0 { // no filter would be everything
				all = append(all, args)
			}
		case n := <-connections:
			open += n
			idle.Stop()
			if open == 0 {
				idle.Reset(time.Second)
			}
		case <-idle.C:
			return remove(context.Background(), docker, all)
		}
	}
}

func remove(ctx context.Context, docker *client.Client, all []filters.Args) error {
	me, _ := os.Hostname() // the short ID, unless someone said otherwise
	var errs []error
	for _, args := range all {
		list, err := docker.ContainerList(ctx, container.ListOptions{All: true, Filters: args})
		errs = append(errs, err)
		for _, c := range list {
			if c.ID[:12] != me {
				errs = append(errs, docker.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}))
			}
		}
		networks, err := docker.NetworkList(ctx, network.ListOptions{Filters: args})
		errs = append(errs, err)
		for _, n := range networks {
			errs = append(errs, docker.NetworkRemove(ctx, n.ID))
		}
		volumes, err := docker.VolumesPrune(ctx, args)
		errs = append(errs, err)
		fmt.Println("removed", len(list), "containers,", len(networks), "networks,", len(volumes.VolumesDeleted), "volumes")
	}
	return errors.Join(errs...)
}
